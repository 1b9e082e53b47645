"""A network's graph as a list of functions, for translations and gradients."""
from collections import Counter
from collections.abc import Container

import nnabla as nn

from models.registry import Network
from utils.errors import UserError


class Unsupported(UserError):
    """A network uses something this operation does not support."""


# Functions with parameters; these follow the one other input.
LAYERS = ("Affine", "BatchNormalization", "Convolution")
# Functions that no gradient passes.  Those of two inputs take a parameter as the second, too.
FIXED = ("AddScalar", "Div2", "Mul2", "PowScalar", "Sub2")
# Arguments of functions that consumers of the list assume.
USUAL = {"axes": [1], "base_axis": 1, "channel_last": False,
         "ignore_border": True, "mode": "constant", "no_bias": False, "no_scale": False}


def functions(image: nn.Variable, output: nn.Variable, known: Container[str], purpose: str,
              batch_stat: bool = False) -> list:
    """The functions between `image` and `output`, in the order of computation.

    Args:
        image: the input of the graph, (B, C, H, W).
        output: its output.
        known: the supported types of function, such as ``Convolution``; those in ``FIXED`` are supported
            besides where nothing before them is trained.
        purpose: what needs the list, for messages.
        batch_stat: whether batch normalization must use the batch's statistics, or must not.

    Returns:
        Objects of type ``nnabla.function.Function``, with `info.type_name` and `info.args`.  Inputs
        are the image or outputs of earlier functions, except that parameters of the current scope
        follow the first input of functions in ``LAYERS`` and can do so in ``FIXED``.

    Raises:
        Unsupported: a function is not supported; the message names it and its layer.
    """
    names = {variable: name for name, variable in nn.get_parameters(grad_only=False).items()}
    result, layers = [], {image: "the image"}  # layers: variable -> name of the layer it belongs to

    def take(function):
        kind, first = function.info.type_name, function.inputs[0]
        inputs = function.inputs
        rest = {*names, *layers} if kind in FIXED else names if kind in LAYERS else layers
        layer = next((names[variable] for variable in function.inputs if variable in names),
                     layers.get(first, "an input that does not depend on the image"))
        if kind not in known and (kind not in FIXED or function.outputs[0].need_grad):
            problem = f"supports {', '.join(sorted(known))}"
        elif inputs[0] not in layers or not all(variable in rest for variable in inputs[1:]):
            problem = f"supports parameters only unchanged and only in {', '.join(LAYERS + FIXED)}"
        else:
            problem = _unusual(function, {**USUAL, "batch_stat": batch_stat})
        if problem:
            raise Unsupported(f"{purpose} {problem}; found {kind} at {layer}")
        layers.update((variable, layer) for variable in function.outputs)
        result.append(function)

    output.visit(take)
    if not result:
        raise Unsupported(f"{purpose} expected some functions, found none; change the model")
    return result


def _unusual(function, usual: dict) -> str:
    """What is supported and what was found, if a function has unusual arguments; else nothing."""
    args, shapes = function.info.args, [variable.shape for variable in function.inputs]
    for key, value in usual.items():
        if args.get(key, value) != value:
            return f"supports {key} {value}, found {args[key]}"
    if len(args.get("kernel", (0, 0))) != 2:
        return f"supports kernels of two dimensions, found {args['kernel']}"
    if function.info.type_name == "Add2" and shapes[0] != shapes[1]:
        return f"supports inputs of one shape, found {shapes[0]} and {shapes[1]}"
    if function.info.type_name == "Affine" and len(shapes[1]) != 2:
        return f"supports weights of two dimensions, found {shapes[1]}"
    return ""


def check_last_layer(logits: nn.Variable, features: nn.Variable, trained: bool):
    """Check that the layer ``affine`` computes the logits from the features.

    Args:
        logits: a model's first result.
        features: its second result.
        trained: whether the layer's parameters must be trained.

    Raises:
        Unsupported: it does not, or something else uses the layer's parameters too.
    """
    parameters, uses = nn.get_parameters(grad_only=False), Counter[nn.Variable]()
    logits.visit(lambda function: uses.update(function.inputs))
    last, names = logits.parent, {variable: name for name, variable in parameters.items()}
    inputs = [names.get(variable, "") for variable in last.inputs[1:]]
    if last.info.type_name != "Affine" or last.inputs[0] != features \
            or inputs != ["affine/W", "affine/b"] \
            or any(uses[variable] > 1 for variable in last.inputs[1:]):
        raise Unsupported("expected a model to return PF.affine(h, classes), named affine and used "
                          "once, and h; found another "
                          f"{last.info.type_name} at the end; change the model")
    frozen = [name for name, variable in zip(inputs, last.inputs[1:], strict=True)
              if not (variable.need_grad and name in nn.get_parameters())]
    if trained and frozen:
        raise Unsupported(f"--layers last scores a layer that is trained, found {frozen[0]} fixed; "
                          "give --layers all")


def fingerprint(network: Network) -> list[str]:
    """The functions of a network in inference mode, as text that identifies the network."""
    lines: list[str] = []
    logits, _ = network(network.input(1), test=True)
    logits.visit(lambda function: lines.append(
        f"{function.info.type_name} {sorted(function.info.args.items())} "
        f"{[variable.shape for variable in function.inputs]}"))
    return lines
