"""How the coverage sweep builds and calls a model for real: as cheaply as the model allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.coverage.libraries import Library, Size

BATCH = 2
CUTS: tuple[dict[str, Any], ...] = (
    {"depth": 2},
    {"depths": (1, 1, 1, 1)},
    {"depths": (1, 1, 1)},
    {"layers": (1, 1, 1, 1)},
    {"stem_width": 32, "base_width": 16, "cardinality": 8},
    {"block_args": None, "channel_multiplier": 0.25},
)
HUGE = 5
HUGE_CUTS: tuple[dict[str, Any], ...] = (
    {"depth": 2, "num_kv_heads": (None, 8)},  # one block with all heads, one with grouped queries
    {"depth": 6, "wa": 1200.0},  # the same four widths in fewer blocks
    {"channels": (64, 128, 256, 512)},
)
"""For models so many times larger than the limit, which would not fit into memory whole."""


class Way(NamedTuple):
    """How to build and call a model.

    Attributes:
        arguments: For building it.
        size: Channels, height and width of the pictures.
        parameters: Of the whole model.
        described: What a row says about the arguments.
    """

    arguments: Mapping[str, Any]
    size: Size
    parameters: int
    described: str


def cheapest_way(library: Library, name: str, largest: float) -> Way:
    """The first way to build and call a model, from the cheapest on, that works without values.

    Args:
        library: Where the name is from.
        name: A model.
        largest: Models with more parameters are built with less depth where that is possible.

    Raises:
        RuntimeError: No way works.
    """
    whole = build_on_meta(library, name, {})
    parameters, made_for = count(whole), library.size(name, whole)
    sizes = [
        *((made_for[0], side, side) for side in library.smaller if side < made_for[-1]),
        made_for,
        *((made_for[0], side, side) for side in library.larger),
    ]
    cuts: tuple[dict[str, Any], ...] = ({},)
    if parameters > largest:
        cuts = (*CUTS, *(HUGE_CUTS if parameters > HUGE * largest else ()), {})
    for cut in cuts:
        most = parameters - bool(cut)  # some builders take arguments that mean nothing to them
        for size in sizes:
            for arguments in (cut, {**cut, "img_size": size[-1]}):
                # In training, too, where smaller pictures may do; the largest is the last resort.
                if _runs(library, name, arguments, size, size != sizes[-1], most):
                    return Way(arguments, size, parameters, _described(arguments, library))
    raise RuntimeError("no way to build the model runs on the meta device")


def _runs(
    library: Library,
    name: str,
    arguments: Mapping[str, Any],
    size: Size,
    training: bool,
    most_parameters: int,
) -> bool:
    """Whether a model can be built so, with no more parameters, and called with such pictures."""
    try:
        model = build_on_meta(library, name, arguments)
        if count(model) > most_parameters:
            return False
        with torch.device("meta"), torch.no_grad():
            model.eval()(torch.empty(BATCH, *size))
            if training:
                model.train()(torch.empty(BATCH, *size))
    except Exception:  # whatever a model raises on arguments or sizes that it does not take
        return False
    return True


def build_on_meta(library: Library, name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A model without values."""
    try:
        with torch.device("meta"):
            return library.build(name, arguments)
    except NotImplementedError:  # torchvision's RegNet computes its widths with tensors
        return library.build(name, arguments).to("meta")


def count(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(tensor.numel() for tensor in model.parameters())


def _described(arguments: Mapping[str, Any], library: Library) -> str:
    return ", ".join(f"{key}={value}" for key, value in arguments.items()) or library.as_built
