"""Claims on disk: safetensors with a versioned header, read strictly."""

from __future__ import annotations

import hmac
import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from passportize.anchors import anchor_fan_in
from passportize.atomic_file import write_atomically
from passportize.claim import VERSION, Claim
from passportize.config import PassportConfig
from passportize.errors import ClaimFileError, PassportizeError
from passportize.private_statistics import OFFSET, RATIO
from passportize.site import ADDED_LATER, Anchor, AnchorPart, Role, Site

__all__ = ["FORMAT", "read_claim", "write_claim"]

FORMAT = "passportize claim"
_KEYS = {"format", "version", "header", "digest"}
_BOTTLENECK = ("bottleneck.0.weight", "bottleneck.2.weight")
_MOST_BITS = 1 << 26
_LONGEST_ROW = 1 << 30

Value = TypeVar("Value")


def write_claim(claim: Claim, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a claim; the file appears complete or not at all.

    Raises:
        ClaimFileError: The file exists or cannot be written.
    """
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "header": claim.header(),
        "digest": claim.digest(),
    }
    data = save(dict(claim.tensors), metadata)
    write_atomically(path, data, overwrite=overwrite, error=ClaimFileError)


def read_claim(path: str | os.PathLike[str]) -> Claim:
    """Read a claim and check it against its digest.

    Raises:
        ClaimFileError: The file is missing, damaged, changed, of another kind or newer.
    """
    file = Path(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ClaimFileError(f"{file}: {reason}; check the path of the claim") from None
    metadata = _metadata(data, file)
    try:
        tensors = load(data)
        claim = _claim(metadata["header"], tensors)
        intact = hmac.compare_digest(claim.digest(), metadata["digest"])
    except (
        AttributeError,
        KeyError,
        OverflowError,
        PassportizeError,
        RecursionError,
        SafetensorError,
        TypeError,
        ValueError,
    ) as error:
        _damaged(file, str(error))
    if not intact or claim.header() != metadata["header"]:
        _damaged(file, "its content does not have the digest that it names")
    return claim


def _damaged(file: Path, reason: str) -> NoReturn:
    raise ClaimFileError(
        f"{file}: the claim is damaged or was changed ({reason[:200]}); use another copy"
    )


def _metadata(data: bytes, file: Path) -> dict[str, str]:
    """The text fields at the front of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    try:
        if len(data) < 8 or length > len(data) - 8:
            raise ValueError
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        kind, version = metadata["format"], metadata["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ClaimFileError(
            f"{file}: this is no claim, or only a part of one; give the file that save_claim wrote"
        ) from None
    if kind != FORMAT:
        raise ClaimFileError(
            f"{file}: this is a safetensors file, but no claim; give the file that save_claim wrote"
        )
    if version != str(VERSION):
        raise ClaimFileError(
            f"{file}: this version of passportize reads claims of format {VERSION}, not "
            f"{str(version)[:20]!r}; update passportize"
        )
    if set(metadata) != _KEYS or not all(isinstance(text, str) for text in metadata.values()):
        _damaged(file, "unexpected entries in its header")
    return dict(metadata)


def _claim(header: str, tensors: dict[str, Tensor]) -> Claim:
    record = _record(
        json.loads(header, parse_constant=_no_constant),
        {
            "model",
            "architecture",
            "config",
            "sites",
            "anchors",
            "commitment",
            "weights",
            "structure",
        },
    )
    config = PassportConfig.from_dict(_typed(record["config"], dict))
    sites, configs = [], []
    for item in _typed(record["sites"], list):
        entry = dict(_typed(item, dict))
        own = entry.pop("config")
        configs.append(config if own is None else PassportConfig.from_dict(_typed(own, dict)))
        sites.append(_site(entry))
    claim = Claim(
        model=_text(record["model"]),
        architecture=_text(record["architecture"]),
        config=config,
        sites=tuple(sites),
        configs=tuple(configs),
        anchors={
            _text(name): _shape(shape) for name, shape in _typed(record["anchors"], dict).items()
        },
        commitment=_hex(record["commitment"]),
        weights=_hex(record["weights"]),
        structure=tuple(
            (_text(name), _shape(shape)) for name, shape in _typed(record["structure"], list)
        ),
        tensors=tensors,
    )
    _check(claim)
    return claim


def _check(claim: Claim) -> None:
    """What the parts of a claim must have in common."""
    _require(len({site.name for site in claim.sites}) == len(claim.sites), "a site appears twice")
    names = [name for name, _ in claim.structure]
    _require(len(set(names)) == len(names), "a tensor appears twice")
    _require(0 < claim.bits <= _MOST_BITS, f"{claim.bits} signature bits")
    used = set()
    expected: dict[str, tuple[int, ...]] = {}
    for index, site in enumerate(claim.sites):
        for name in (OFFSET, RATIO):
            if f"{index}.{name}" in claim.tensors:
                expected[f"{index}.{name}"] = (site.channels,)
        if site.role is not Role.BOUND:
            continue
        _require(site.anchor is not None and bool(site.anchor.parts), "a bound site has no anchor")
        assert site.anchor is not None
        _require(site.anchor.channels == site.channels, f"{site.name}: its anchor does not fit")
        for part in site.anchor.parts:
            used.add(part.weight)
            fan_in = anchor_fan_in(claim.anchors[part.weight], part)
            _require(0 < fan_in <= _LONGEST_ROW, f"{site.name}: rows of {fan_in} entries")
        if claim.configs[index].formulation == "paper":
            first = claim.tensors[f"{index}.{_BOTTLENECK[0]}"]
            hidden = first.shape[0]
            expected[f"{index}.{_BOTTLENECK[0]}"] = (hidden, site.channels)
            expected[f"{index}.{_BOTTLENECK[1]}"] = (site.channels, hidden)
    _require(used == set(claim.anchors), "its anchors are not those of its sites")
    _require(set(expected) == set(claim.tensors), "its tensors are not those of its sites")
    for name, shape in expected.items():
        tensor = claim.tensors[name]
        _require(tuple(tensor.shape) == shape, f"the tensor {name} has another shape")
        _require(tensor.dtype.is_floating_point, f"the tensor {name} holds no numbers")
        _require(bool(torch.isfinite(tensor).all()), f"the tensor {name} is not finite")
        if name.endswith(RATIO):
            _require(bool((tensor >= 0).all()), f"the tensor {name} is negative")


def _site(entry: dict[str, Any]) -> Site:
    _record(entry, {field.name for field in fields(Site)})
    anchor = None
    if entry["anchor"] is not None:
        inner = _record(entry["anchor"], {field.name for field in fields(Anchor)})
        anchor = Anchor(
            parts=tuple(_part(part) for part in _typed(inner["parts"], list)),
            rule=_text(inner["rule"]),
            crossed=tuple(_text(step) for step in _typed(inner["crossed"], list)),
        )
    role = Role(entry["role"])
    _require(role in (Role.BOUND, Role.STATISTICS), f"a site is {role.value}")
    return Site(
        name=_text(entry["name"]),
        norm_type=_text(entry["norm_type"]),
        role=role,
        channels=_count(entry["channels"], 1),
        channel_axis=_count(entry["channel_axis"]),
        anchor=anchor,
        fan_in=_count(entry["fan_in"]),
        aliases=tuple(_text(alias) for alias in _typed(entry["aliases"], list)),
        reason=_text(entry["reason"]),
    )


def _part(entry: Any) -> AnchorPart:
    known = {field.name for field in fields(AnchorPart)}
    record = _record(entry, known - (ADDED_LATER - set(_typed(entry, dict))))
    _require(record["axis"] in ("output", "input"), "an anchor has an unknown axis")
    return AnchorPart(
        weight=_text(record["weight"]),
        channels=_count(record["channels"], 1),
        axis=_text(record["axis"]),
        start=_count(record["start"]),
        repeats=_count(record["repeats"], 1),
        groups=_count(record["groups"], 1),
        transposed=_typed(record["transposed"], bool),
        expert_shape=_shape(record.get("expert_shape", [])),
        centred=_typed(record.get("centred", False), bool),
        less_mean_row=_typed(record.get("less_mean_row", False), bool),
    )


def _require(sound: bool, reason: str) -> None:
    if not sound:
        raise ValueError(reason)


def _record(value: Any, keys: set[str]) -> dict[str, Any]:
    record: dict[str, Any] = _typed(value, dict)
    _require(set(record) == keys, f"entries missing or unknown: {sorted(set(record) ^ keys)[:5]}")
    return record


def _typed(value: Any, kind: type[Value]) -> Value:
    if type(value) is not kind:
        raise ValueError(f"expected {kind.__name__}, found {type(value).__name__}")
    return value


def _text(value: Any) -> str:
    text = _typed(value, str)
    _require(text.isprintable(), "text with control characters")
    return text


def _count(value: Any, least: int = 0) -> int:
    number = _typed(value, int)
    _require(least <= number < 1 << 40, f"the number {number} is out of range")
    return number


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(_count(size) for size in _typed(value, list))


def _hex(value: Any) -> str:
    text = _text(value)
    _require(len(text) == 64 and not set(text) - set("0123456789abcdef"), "a digest is malformed")
    return text


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"the number {name}")
