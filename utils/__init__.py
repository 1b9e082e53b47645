"""What the scripts share.

Read `utils/tracin/self_influence.py` first: it holds the score.  `graph` reads a network, `training`
trains it, `review` shows the result; the modules beside these folders serve all of them.
"""
import logging

from utils.startup import prepare

prepare()
# NNabla logs every extension it loads and every file it writes.
logging.getLogger("nnabla").setLevel(logging.WARNING)
