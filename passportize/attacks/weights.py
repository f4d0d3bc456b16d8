"""The weights that removal attacks work on."""

from __future__ import annotations

from torch import Tensor, nn

from passportize.errors import InvalidArgument
from passportize.tracing.weight_layers import is_weight_module

__all__ = ["matrix_weights"]


def matrix_weights(model: nn.Module, who: str) -> dict[str, Tensor]:
    """The weights of all convolutions and linear layers of a plain model, each once.

    Args:
        model: A plain model.
        who: Asks for them, for errors.

    Raises:
        InvalidArgument: There are none, or one is computed from other parameters
            (``torch.nn.utils.parametrize``), so that writing into it would change nothing.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if not is_weight_module(module):
            continue
        weight = module._parameters.get("weight")
        if weight is None:
            raise InvalidArgument(
                f"{who}: the weight of {name or 'the model'} ({type(module).__name__}) is computed "
                "from other parameters; remove parametrizations first, as a release does"
            )
        if id(weight) not in seen:
            seen.add(id(weight))
            found[f"{name}.weight" if name else "weight"] = weight
    if not found:
        raise InvalidArgument(f"{who}: {type(model).__name__} has no convolution or linear layer")
    return found
