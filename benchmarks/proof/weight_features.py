"""What somebody without the key can measure on a network's weights, one number for each look.

Every look is at all weights of a network: the mean over its layers that are large enough. A network
whose rows all answer to the same vectors shows in `spectrum` and `humps`, one whose rows have masks
in common in `squares`, one that was turned in a window in `windows`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import fmean

import torch
from torch import Tensor, nn

from passportize.attacks.spectral import find_direction
from passportize.tracing.weight_layers import is_weight_module

__all__ = ["factor_features", "weight_features"]

_WINDOW = 256
_SHORTEST = 64


def weight_features(model: nn.Module) -> dict[str, list[float]]:
    """Features of every look that reads weights alone.

    Args:
        model: A plain network of convolutions and linear layers.
    """
    rows = list(_rows(model))
    unit = [_unit(part) for part in rows]
    looks = {
        "spectrum": [_spectrum(part) for part in unit],
        "humps": [[find_direction(part).missing] for part in unit],
        "windows": [_windows(part) for part in unit if part.shape[1] > _WINDOW],
        "squares": [_squares(part) for part in unit],
        "row lengths": [_lengths(part) for part in rows],
        "single entries": [_entries(part) for part in unit],
    }
    return {
        name: [fmean(layer[place] for layer in layers) for place in range(len(layers[0]))]
        for name, layers in looks.items()
        if layers
    }


def factor_features(model: nn.Module) -> dict[str, list[float]]:
    """Features of the factors of norms, alone and beside the rows that they scale.

    Args:
        model: A plain network in which every BatchNorm stands behind the convolution before it.
    """
    layers, rows = [], None
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert rows is not None and isinstance(module.bias, Tensor)
            scale, shift = module.weight.detach().double(), module.bias.detach().double()
            lengths = torch.linalg.vector_norm(rows, dim=1)
            both = torch.stack((scale, shift, lengths))
            layers.append(
                [
                    *_moments(scale),
                    *_moments(shift),
                    *torch.corrcoef(both)[[0, 0, 1], [1, 2, 2]].nan_to_num(0).tolist(),
                ]
            )
        elif is_weight_module(module):
            rows = _rows_of(module)
    return {"norm factors": [fmean(layer[at] for layer in layers) for at in range(len(layers[0]))]}


def _rows(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        if is_weight_module(module):
            rows = _rows_of(module)
            if len(rows) >= _SHORTEST and rows.shape[1] >= _SHORTEST:
                yield rows


def _rows_of(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach().flatten(1).double()


def _unit(rows: Tensor) -> Tensor:
    """Rows with entries of about variance 1."""
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-30)
    unit: Tensor = rows / lengths * math.sqrt(rows.shape[1])
    return unit


def _spectrum(unit: Tensor) -> list[float]:
    """Leading eigenvalues of the second moment, and how far all of them lie apart."""
    values = torch.linalg.svdvals(unit).square() / len(unit)
    return [*values[:4].log().tolist(), float(values.log().std())]


def _windows(unit: Tensor) -> list[float]:
    """Energy of the window that has most and of the one that has least, and its spread."""
    energy = unit.square().cumsum(1)
    inside = (energy[:, _WINDOW:] - energy[:, :-_WINDOW]).mean(0) / _WINDOW
    return [float(inside.max()), float(inside.min()), float(inside.std())]


def _squares(unit: Tensor) -> list[float]:
    """Leading eigenvalues of the second moment of squared entries, less their means."""
    squares = unit.square()
    squares = squares - squares.mean(0) - squares.mean(1, keepdim=True) + squares.mean()
    leading: list[float] = (torch.linalg.svdvals(squares)[:3].square() / len(unit)).log().tolist()
    return leading


def _lengths(rows: Tensor) -> list[float]:
    return _moments(torch.linalg.vector_norm(rows, dim=1).clamp_min(1e-30).log())


def _entries(unit: Tensor) -> list[float]:
    """Moments of single entries, and the share of those near zero and far from it."""
    size = unit.abs()
    return [
        *_moments(unit.flatten()),
        float(size.mean()),
        float((size < 0.1).double().mean()),
        float((size > 2.5).double().mean()),
    ]


def _moments(values: Tensor) -> list[float]:
    """Mean, deviation, skewness and kurtosis."""
    deviation = values.std().clamp_min(1e-30)
    standard = (values - values.mean()) / deviation
    return [
        float(values.mean()),
        float(deviation),
        float(standard.pow(3).mean()),
        float(standard.pow(4).mean()),
    ]
