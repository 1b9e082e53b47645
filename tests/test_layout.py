"""The layout: which package imports which, and what reading a package loads."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

# A package imports those after it, never those before it.
ORDER = ("utils.review", "utils.tracin", "utils.training", "utils.backbone", "utils.graph",
         "models", "datasets", "utils")
SCRIPTS = {"train", "calculate_score", "mislabel_analysis"}


def package_of(module: str) -> str | None:
    return next((package for package in ORDER if f"{module}.".startswith(f"{package}.")), None)


def imports(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    return {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module} | {
        name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}


@pytest.mark.parametrize("path", sorted(
    path.relative_to(ROOT).as_posix() for name in ("utils", "models", "datasets")
    for path in (ROOT / name).rglob("*.py")))
def test_imports_point_one_way(path):
    own = package_of(path.removesuffix(".py").replace("/", "."))
    assert not imports(ROOT / path) & SCRIPTS
    others = {package_of(module) for module in imports(ROOT / path)} - {None, own}
    assert all(ORDER.index(other) > ORDER.index(own) for other in others), others


def test_packages_load_without_nnabla():
    code = f"import sys; sys.modules['nnabla'] = None; import {', '.join(ORDER)}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
