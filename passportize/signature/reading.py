"""Reading a signature from tensors; neither layers nor data are needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from passportize.signature.layout import Layout, anchor_of
from passportize.signature.model_key import ModelKey
from passportize.signature.rows import anchor_rows, row_positions
from passportize.signature.site import AnchorPart, Site
from passportize.utils.precision import at_least_float32

__all__ = [
    "PreparedSite",
    "Reading",
    "SiteReading",
    "prepare_sites",
    "read_signature",
    "readable",
    "rows_of",
]


@dataclass(frozen=True)
class PreparedSite:
    """What a suspect has at one site of a layout; the same for every key.

    Attributes:
        site: The site, as the layout names it.
        found_as: Name of the first anchor weight in the suspect, empty if the site is missing.
        rows: Rows of every anchor part, float32 or float64 ``[channels_i, fan_in_i]``; None if
            the site is missing.
        note: Why the site is missing.
        tensors: Names in the layout of the tensors that were used.
    """

    site: Site
    found_as: str
    rows: tuple[Tensor, ...] | None
    note: str
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class SiteReading:
    """The bits of one site.

    Attributes:
        prepared: Where they come from.
        matched: Bits that are those of the key.
        total: Bits read; 0 for a missing site.
    """

    prepared: PreparedSite
    matched: int
    total: int


@dataclass(frozen=True)
class Reading:
    """The bits of a whole layout.

    Attributes:
        sites: One entry for every site of the layout, in order.
        bits: Bits as read, int8 ``[layout.bits]``; 0 where a site is missing.
        expected: Bits of the key, int8 ``[layout.bits]``.
        confidence: Distance of the responses from zero, in standard deviations,
            ``[layout.bits]``; 0 where a site is missing.
    """

    sites: tuple[SiteReading, ...]
    bits: Tensor
    expected: Tensor
    confidence: Tensor

    @property
    def matched(self) -> int:
        """Bits that are those of the key."""
        return sum(site.matched for site in self.sites)

    @property
    def total(self) -> int:
        """Bits read."""
        return sum(site.total for site in self.sites)


def prepare_sites(
    layout: Layout,
    tensors: Mapping[str, Tensor],
    found: Mapping[str, str],
    unread: Mapping[str, Tensor] | None = None,
) -> list[PreparedSite]:
    """Take from a suspect what the sites of a layout are read from.

    Args:
        layout: The sites.
        tensors: The suspect's tensors by name.
        found: The suspect's name for the weights of the layout; without those that it lacks.
        unread: Entries of the suspect's tensors that are not read, bool in their shapes: they
            count as zeros.
    """
    return [
        _prepare(site, shapes, tensors, found, unread or {})
        for site, shapes in zip(layout.sites, layout.shapes, strict=True)
    ]


def _prepare(
    site: Site,
    shapes: tuple[tuple[int, ...], ...],
    tensors: Mapping[str, Tensor],
    found: Mapping[str, str],
    unread: Mapping[str, Tensor],
) -> PreparedSite:
    rows, used = [], []
    found_as = ""
    for part, shape in zip(anchor_of(site).parts, shapes, strict=True):
        name = found.get(part.weight)
        if name is None:
            return PreparedSite(site, "", None, _missing(part.weight, shape, tensors), ())
        values = rows_of(tensors[name], part)
        if name in unread:
            positions = row_positions(unread[name], part)
            values = values.masked_fill(unread[name].reshape(-1)[positions], 0.0)
        rows.append(values)
        found_as = found_as or name
        used.append(part.weight)
    return PreparedSite(site, found_as, tuple(rows), "", tuple(used))


def readable(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a tensor can be the weight of this shape."""
    return tuple(tensor.shape) == shape and not tensor.is_complex()


def rows_of(weight: Tensor, part: AnchorPart) -> Tensor:
    """Rows of a suspect's tensor, on the CPU, as float32 or, if it is, float64."""
    return anchor_rows(at_least_float32(weight.detach().to("cpu")), part)


def _missing(weight: str, shape: tuple[int, ...], tensors: Mapping[str, Tensor]) -> str:
    if weight in tensors:
        tensor = tensors[weight]
        kind = "complex" if tensor.is_complex() else f"of shape {tuple(tensor.shape)}"
        return f"{weight} is {kind}, not {shape}"
    return f"no tensor stands for {weight} {shape}"


def read_signature(
    key: ModelKey, layout: Layout, prepared: list[PreparedSite], partly: bool = False
) -> Reading:
    """Read the bits of a key from a suspect.

    Args:
        key: Made from a passport and ``layout``.
        layout: The sites.
        prepared: What :func:`prepare_sites` took from the suspect; may be used for many keys.
        partly: Whether rows that are nothing are missing, and not counted.
    """
    expected = key.bits()
    bits = torch.zeros(layout.bits, dtype=torch.int8, device="cpu")
    confidence = torch.zeros(layout.bits, dtype=torch.float64, device="cpu")
    sites = []
    start = 0
    for index, entry in enumerate(prepared):
        stop = start + entry.site.bits
        if entry.rows is None:
            sites.append(SiteReading(entry, 0, 0))
        else:
            formulation = layout.formulation(index)
            responses = formulation.respond(entry.rows, key.sides(index))
            bits[start:stop] = responses.gamma >= 0
            distance = formulation.confidence(responses)
            confidence[start:stop] = torch.nan_to_num(distance, 0.0, 0.0, 0.0)
            there = torch.ones(entry.site.bits, dtype=torch.bool, device="cpu")
            if partly:
                there = responses.length.cpu() != 0
            matched = int(((bits[start:stop] == expected[start:stop]) & there).sum())
            sites.append(SiteReading(entry, matched, int(there.sum())))
        start = stop
    return Reading(tuple(sites), bits, expected, confidence)
