"""Norms that an exporter has folded into the layers before them, taken out again.

Exporters, and ``torch.nn.utils.fuse_conv_bn_eval``, multiply the weight of a layer with the factors
of the BatchNorm behind it and let its bias take the shift. What the network computes is the same,
but the norm's tensors are missing, and no channel could be followed past them. So the lengths of
the rows and the bias are made factors and shifts of a norm again, whose mean is nought and whose
variance one (less what is added to it). It is not the norm that was there, so the released model,
which it is compared with, is brought into the same form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from passportize.errors import PassportizeError
from passportize.layers.private_branch import has_statistics
from passportize.signature.site import Site
from passportize.surgery.planning import plan

__all__ = ["UnfoldedNorms", "in_unfolded_form", "unfold_norms"]


@dataclass(frozen=True)
class UnfoldedNorms:
    """Norms in the places of those that were folded.

    Attributes:
        tensors: Theirs and those of the layers before them, by the model's names.
        layers: The layer before each norm, by the norm's name.
    """

    tensors: Mapping[str, Tensor]
    layers: Mapping[str, str]


def in_unfolded_form(
    model: nn.Module, tensors: Mapping[str, Tensor], layers: Mapping[str, str]
) -> dict[str, Tensor]:
    """Other tensors of a model, with the same norms in the same form.

    Args:
        model: The model; it is only read.
        tensors: By its names; left as they are.
        layers: From :class:`UnfoldedNorms`.
    """
    folded = dict(tensors)
    for name, layer in layers.items():
        norm: Any = model.get_submodule(name)
        mean, variance = tensors[f"{name}.running_mean"], tensors[f"{name}.running_var"]
        factor = (variance.double() + norm.eps).rsqrt()
        if f"{name}.weight" in tensors:
            factor = factor * tensors[f"{name}.weight"].double()
        shift = -mean.double() * factor
        if f"{name}.bias" in tensors:
            shift = shift + tensors[f"{name}.bias"].double()
        if f"{layer}.bias" in tensors:
            shift = shift + tensors[f"{layer}.bias"].double() * factor
        weight = tensors[f"{layer}.weight"]
        folded |= _parted(
            norm, name, layer, weight.double() * _rows(factor, weight), shift, tensors
        )
    return folded


def unfold_norms(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    match: Mapping[str, str | None],
    example_inputs: Any = None,
) -> UnfoldedNorms:
    """Tensors for the norms of a model that a suspect lacks, where their layers have taken them in.

    Args:
        model: A plain model of the suspect's architecture, with norms.
        tensors: The suspect's.
        match: The suspect's name for each tensor of ``model``, None where it has none.
        example_inputs: As in :func:`passportize.plan`.

    Returns:
        Of norms whose layer in front has a bias in the suspect. Of none where nothing says that
        they were folded, rather than lost: no such layer has a bias that ``model`` lacks, and not
        all of its norms are missing. Of none where the model cannot be read.
    """
    lacking = {name.rpartition(".")[0] for name, other in match.items() if other is None}
    modules = dict(model.named_modules())
    norms = [
        name
        for name in sorted(lacking)
        if has_statistics(modules[name])
        and all(match[f"{name}.{key}"] is None for key in modules[name].state_dict())
    ]
    nothing = UnfoldedNorms({}, {})
    if not norms:
        return nothing
    try:
        planned = plan(model, example_inputs=example_inputs, check=False)
    except PassportizeError:
        return nothing
    found: dict[str, Tensor] = {}
    layers: dict[str, str] = {}
    own = model.state_dict()
    told = len(norms) == sum(map(has_statistics, modules.values()))
    for site in planned.sites:
        if site.name in norms:
            shift = _shift_before(model, site, tensors, match)
            if shift is not None:
                norm: Any = modules[site.name]
                layer = layers[site.name] = _layer_before(site)
                told |= f"{layer}.bias" not in match
                weight = tensors[str(match[f"{layer}.weight"])].double()
                found |= _parted(norm, site.name, layer, weight, shift.double(), own)
    return UnfoldedNorms(found, layers) if told else nothing


def _layer_before(site: Site) -> str:
    """The layer whose outputs a norm reads as they are; empty where there is none."""
    anchor = site.anchor
    if anchor is None or anchor.crossed or len(anchor.parts) > 1:
        return ""
    part = anchor.parts[0]
    whole = part.axis == "output" and part.start == 0 and part.repeats == 1 and not part.transposed
    return part.weight.removesuffix(".weight") if whole and anchor.rule == "upstream" else ""


def _shift_before(
    model: nn.Module, site: Site, tensors: Mapping[str, Tensor], match: Mapping[str, str | None]
) -> Tensor | None:
    """What a norm has to add to what the layer before it gives; None where that is not known."""
    layer = _layer_before(site)
    weight = match.get(f"{layer}.weight") if layer else None
    if weight is None:
        return None
    bias = tensors.get(weight.removesuffix("weight") + "bias")
    return bias if bias is not None and bias.shape == (site.channels,) else None


def _parted(
    norm: Any, name: str, layer: str, weight: Tensor, shift: Tensor, like: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Tensors of a norm and of the layer before it that multiply with ``weight`` and add ``shift``.

    Args:
        norm: The norm.
        name: Its name.
        layer: Name of the layer.
        weight: Float64.
        shift: Float64 ``[channels]``.
        like: Tensors of the model, whose types are wanted.
    """
    ones = torch.ones_like(shift)
    lengths, mean = ones, -shift
    if norm.affine:
        # Scales of channels are told by the factors of norms.
        lengths, mean = torch.linalg.vector_norm(weight.flatten(1), dim=1), torch.zeros_like(shift)
        weight = weight / _rows(lengths.clamp_min(1e-300), weight)
    wanted = {
        f"{layer}.weight": weight,
        f"{layer}.bias": torch.zeros_like(shift),
        f"{name}.weight": lengths,
        f"{name}.bias": shift,
        f"{name}.running_mean": mean,
        f"{name}.running_var": ones - norm.eps,
    }
    keys = (*(f"{name}.{key}" for key in norm.state_dict()), f"{layer}.weight", f"{layer}.bias")
    return {
        key: wanted[key].to(like[key]) if key in wanted else like[key]
        for key in keys
        if key in like
    }


def _rows(factors: Tensor, weight: Tensor) -> Tensor:
    """One factor for each row of a weight."""
    return factors.view(-1, *(1,) * (weight.dim() - 1))
