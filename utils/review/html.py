"""HTML pages from the templates in this folder: one file each, that needs neither network nor server."""
from pathlib import Path

import jinja2

from utils.files import save_text


def save_html(path: Path, template: str, **content: object):
    """Write a page.

    Args:
        path: HTML file to write.
        template: name of the template.
        content: what it shows, which may be untrusted: it is escaped, in scripts by ``tojson``.

    Raises:
        RunError: the file cannot be written.
    """
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent),
                                     autoescape=True, undefined=jinja2.StrictUndefined)
    save_text(path, environment.get_template(template).render(content))
