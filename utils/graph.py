"""A model's inference graph as a list of functions, for what is made of it elsewhere."""
from collections.abc import Container

import nnabla as nn

from utils.cli import UserError


class Unsupported(UserError):
    """A network has something that what is to be done with it cannot take."""


# The functions that have parameters, which follow their one other input.
LAYERS = ("Affine", "BatchNormalization", "Convolution")
# The arguments for which a function means what the readers of the list take it to mean.
USUAL = {"axes": [1], "base_axis": 1, "batch_stat": False, "channel_last": False,
         "ignore_border": True, "no_bias": False, "no_scale": False}


def functions(image: nn.Variable, output: nn.Variable, known: Container[str], purpose: str) -> list:
    """The functions between `image` and `output`, in the order of computation.

    Args:
        image: where the graph begins, (B, C, H, W).
        output: where it ends.
        known: the types of function that can be taken, such as ``Convolution``.
        purpose: what they are taken for, in words.

    Returns:
        Each an ``nnabla.function.Function``, with its `info.type_name` and `info.args`.  Inputs
        are the image or outputs of functions before it, but for the parameters of the current scope
        that follow the first input of those in ``LAYERS``.

    Raises:
        Unsupported: a function cannot be taken; the message names it and the layer it belongs to.
    """
    names = {variable: name for name, variable in nn.get_parameters(grad_only=False).items()}
    found, computed, layer = [], {image}, "the image"

    def take(function):
        nonlocal layer
        kind, args = function.info.type_name, function.info.args
        layer = next((names[variable] for variable in function.inputs if variable in names), layer)
        data = 1 if kind in LAYERS else len(function.inputs)
        unusual = [key for key, usual in USUAL.items() if args.get(key, usual) != usual]
        problem = ""
        if kind not in known:
            problem = f"can take {', '.join(sorted(known))}"
        elif unusual:
            problem = f"can take {unusual[0]} {USUAL[unusual[0]]}, found {args[unusual[0]]}"
        elif not (computed.issuperset(function.inputs[:data]) and
                  names.keys() >= set(function.inputs[data:])):
            problem = f"can take parameters of {', '.join(LAYERS)}, and as they are"
        if problem:
            raise Unsupported(f"{purpose} {problem}; found {kind} at {layer}")
        computed.update(function.outputs)
        found.append(function)

    output.visit(take)
    return found
