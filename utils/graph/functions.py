"""A model's inference graph as a list of functions, for what is made of it elsewhere."""
from collections import Counter
from collections.abc import Callable, Container

import nnabla as nn

from utils.errors import UserError


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
    found, layers = [], {image: "the image"}  # layers: what is computed -> the layer it belongs to

    def take(function):
        kind, first = function.info.type_name, function.inputs[0]
        data = 1 if kind in LAYERS else len(function.inputs)
        layer = next((names[variable] for variable in function.inputs if variable in names),
                     layers.get(first, "an input that is not computed from the image"))
        problem = ""
        if kind not in known:
            problem = f"can take {', '.join(sorted(known))}"
        elif not (layers.keys() >= set(function.inputs[:data]) and
                  names.keys() >= set(function.inputs[data:])):
            problem = f"can take parameters only as they are, and only in {', '.join(LAYERS)}"
        else:
            problem = _unusual(function)
        if problem:
            raise Unsupported(f"{purpose} {problem}; found {kind} at {layer}")
        layers.update((variable, layer) for variable in function.outputs)
        found.append(function)

    output.visit(take)
    if not found:
        raise Unsupported(f"{purpose} can take a network of some functions, found none")
    return found


def _unusual(function) -> str:
    """What can be taken, and what was found, where a function is used in another way; else nothing."""
    args, shapes = function.info.args, [variable.shape for variable in function.inputs]
    for key, usual in USUAL.items():
        if args.get(key, usual) != usual:
            return f"can take {key} {usual}, found {args[key]}"
    if len(args.get("kernel", (0, 0))) != 2:
        return f"can take kernels of two dimensions, found {args['kernel']}"
    if function.info.type_name == "Add2" and shapes[0] != shapes[1]:
        return f"can take inputs of one shape, found {shapes[0]} and {shapes[1]}"
    if function.info.type_name == "Affine" and len(shapes[1]) != 2:
        return f"can take weights of two dimensions, found {shapes[1]}"
    return ""


def check_last_layer(logits: nn.Variable, h: nn.Variable, trained: bool):
    """Check that the logits are those of the layer ``affine``, and `h` is its input.

    Args:
        logits: what a model returns.
        h: likewise.
        trained: whether the layer's parameters must be trained.

    Raises:
        Unsupported: it is not so, or something else uses the layer's parameters too.
    """
    parameters, uses = nn.get_parameters(grad_only=False), Counter()
    logits.visit(lambda function: uses.update(function.inputs))
    last, names = logits.parent, {variable: name for name, variable in parameters.items()}
    found = [names.get(variable, "") for variable in last.inputs[1:]]
    if last.info.type_name != "Affine" or last.inputs[0] != h or found != ["affine/W", "affine/b"] \
            or any(uses[variable] > 1 for variable in last.inputs[1:]):
        raise Unsupported("expected a model to return PF.affine(h, classes), named affine and used "
                          "once, and that h; found another "
                          f"{last.info.type_name} at the end; change the model")
    frozen = [name for name, variable in zip(found, last.inputs[1:])
              if not (variable.need_grad and name in nn.get_parameters())]
    if trained and frozen:
        raise Unsupported(f"--layers last scores a layer that is trained, found {frozen[0]} fixed; "
                          "give --layers all")


def fingerprint(prediction: Callable) -> list[str]:
    """The functions of a network in inference mode, as words, to know the network again by."""
    words = []
    logits, _ = prediction(nn.Variable((1, 3, 32, 32)), test=True)
    logits.visit(lambda function: words.append(
        f"{function.info.type_name} {sorted(function.info.args.items())} "
        f"{[variable.shape for variable in function.inputs]}"))
    return words
