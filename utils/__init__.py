"""What the scripts share, one module a concern."""
import logging

# NNabla announces every extension it loads and every file it writes.
logging.getLogger("nnabla").setLevel(logging.WARNING)
