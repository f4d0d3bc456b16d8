"""Weights as other frameworks lay them out, turned into torch's way.

torch keeps a kernel as outputs, inputs, height, width and a matrix as outputs by inputs. TensorFlow
and Keras keep height, width, inputs, outputs; TensorFlow Lite outputs, height, width, inputs; ONNX
and Keras often inputs by outputs. A kernel of one entry in space may be kept as a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet

from torch import Tensor

__all__ = ["in_other_layouts"]

Turn = Callable[[Tensor], Tensor]


def _axes(*order: int) -> Turn:
    return lambda tensor: tensor.permute(order)


def _depthwise(tensor: Tensor) -> Tensor:
    """Height, width, channels, multiples: torch has a channel's multiples one after the other."""
    height, width, channels, multiples = tensor.shape
    return tensor.permute(2, 3, 0, 1).reshape(channels * multiples, 1, height, width)


_TURNS: dict[int, dict[str, Turn]] = {
    2: {
        "IO": _axes(1, 0),
        "OI as kernel": lambda tensor: tensor[:, :, None, None],
        "IO as kernel": lambda tensor: tensor.T[:, :, None, None],
    },
    3: {"WIO": _axes(2, 1, 0), "OWI": _axes(0, 2, 1)},
    4: {
        "HWIO": _axes(3, 2, 0, 1),
        "OHWI": _axes(0, 3, 1, 2),
        "HWCM": _depthwise,
        "1HWO": _axes(3, 0, 1, 2),
        "as matrix": lambda tensor: tensor.reshape(tensor.shape[:2]),
    },
    5: {"DHWIO": _axes(4, 3, 0, 1, 2), "ODHWI": _axes(0, 4, 1, 2, 3)},
}


def in_other_layouts(
    tensors: Mapping[str, Tensor], wanted: AbstractSet[tuple[int, ...]]
) -> dict[str, Tensor]:
    """Tensors that have one of some shapes when they are taken to be in another layout.

    Args:
        tensors: Tensors by name.
        wanted: Shapes, in torch's layout.

    Returns:
        Views by the name and the layout, ``"conv.kernel (HWIO)"`` say. A tensor may be there more
        than once, or not at all; none is there in the layout that it has.
    """
    return {
        f"{name} ({layout})": turned
        for name, tensor in tensors.items()
        for layout, turned in _turned(tensor)
        if tuple(turned.shape) in wanted
    }


def _turned(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    seen: set[tuple[tuple[int, int], ...]] = set()
    for layout, turn in _TURNS.get(tensor.dim(), {}).items():
        if layout == "as matrix" and tensor.shape[2:].numel() != 1:
            continue
        turned = turn(tensor)
        # Layouts of a kernel without extent in space may be one and the same.
        places = tuple(
            (side, step if side > 1 else 0)
            for side, step in zip(turned.shape, turned.stride(), strict=True)
        )
        if places not in seen:
            seen.add(places)
            yield layout, turned
