"""Weights in several files: lists of shards, folders of a hub, checkpoints of torch.distributed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from passportize.suspects.merging import adapter_scales, has_adapters
from passportize.suspects.pickle_machine import Made
from passportize.suspects.refusals import Damaged, Unsupported
from passportize.suspects.source import Found, Source
from passportize.suspects.torch_files import tensors_of_archive
from passportize.suspects.torch_pickle import load_pickle
from passportize.suspects.window import Window, checked_size

__all__ = [
    "is_distributed",
    "is_index",
    "is_model_folder",
    "read_distributed",
    "read_index",
    "read_model_folder",
]

LARGEST_LIST = 8 * 2**20
_METADATA = ".metadata"
_ADAPTER = "adapter_model"
_ENDINGS = (
    ".safetensors.index.json",
    ".bin.index.json",
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".pth.tar",
    ".pt2",
    ".onnx",
    ".gguf",
    ".tflite",
    ".h5",
    ".keras",
    ".npz",
    ".mlmodel",
)
# What a folder holds beside its weights.
_ASIDE = ("optimizer", "scheduler", "scaler", "rng_state", "training_args", "random_states")

Open = Callable[[Source], Found]


def _listed(source: Source) -> Any:
    if len(source.window) > LARGEST_LIST:
        return None
    try:
        return json.loads(bytes(source.window.data))
    except (ValueError, RecursionError):
        return None


# --- lists of shards -------------------------------------------------------------------------


def is_index(source: Source) -> bool:
    """Whether a file is a list of shards, as transformers writes it."""
    if source.head(1) != b"{" or b'"weight_map"' not in source.head(LARGEST_LIST):
        return False
    content = _listed(source)
    return isinstance(content, dict) and isinstance(content.get("weight_map"), dict)


def read_index(source: Source, opened: Open) -> Found:
    """The tensors that a list names, out of the shards beside it.

    Args:
        source: The list.
        opened: Reads one shard.
    """
    places = _listed(source)["weight_map"]
    shards: dict[str, list[str]] = {}
    for name, shard in places.items():
        if not isinstance(shard, str):
            raise Damaged(f"it does not say where {name[:80]} is")
        shards.setdefault(shard, []).append(name)
    read: dict[str, Tensor] = {}
    notes: list[str] = []
    for shard, names in shards.items():
        found = opened(source.beside(shard))
        for name in names:
            if name not in found.tensors:
                raise Damaged(f"{shard} lacks {name[:80]}, which the list says is in it")
            read[name] = found.tensors[name]
        notes += [note for note in found.notes if note not in notes]
    return Found({name: read[name] for name in places}, notes)


# --- folders ---------------------------------------------------------------------------------


def is_model_folder(source: Source) -> bool:
    """Whether a folder holds weights by the names that are usual."""
    return source.is_folder and bool(_candidates(source))


def _candidates(source: Source) -> list[str]:
    """Files of weights of a folder, the likeliest first; shards and adapters are not among them."""
    names = sorted(entry.name for entry in source.path.iterdir() if entry.is_file())
    found = [
        name
        for ending in _ENDINGS
        for name in names
        if name.endswith(ending) and not name.startswith((*_ASIDE, _ADAPTER, "."))
    ]
    indexed = any(name.endswith(".index.json") for name in found)
    return [
        name
        for name in dict.fromkeys(found)
        if not (indexed and "-of-" in name and not name.endswith(".json"))
    ] or [name for name in names if name.startswith(_ADAPTER)]


def read_model_folder(source: Source, opened: Open) -> Found:
    """The weights of a folder, with LoRA adapters that lie in it.

    Args:
        source: The folder.
        opened: Reads one file.
    """
    candidates = _candidates(source)
    first = candidates[0]
    rest = [
        name
        for name in candidates[1:]
        if _stem(name) not in (_stem(first), "pytorch_model", "model", "tf_model")
    ]
    if rest:
        raise Unsupported(
            f"it holds several files of weights ({', '.join(candidates[:6])})", "name one of them"
        )
    found = opened(source.beside(first))
    notes = list(found.notes)
    if len(candidates) > 1:
        notes.append(f"of {', '.join(candidates[:6])} the first was read")
    tensors = dict(found.tensors)
    adapter = next(
        (entry.name for entry in source.path.glob(f"{_ADAPTER}.*") if entry.name != first), None
    )
    if adapter is not None:
        tensors.update(opened(source.beside(adapter)).tensors)
    scales = dict(found.scales)
    if has_adapters(tensors):
        config = source.path / "adapter_config.json"
        if config.is_file():
            scales = {**adapter_scales(_listed(source.beside(config.name))), **scales}
        if first.startswith(_ADAPTER):
            raise Unsupported(
                "it holds LoRA adapters without the weights that they change",
                "put the weights of the base beside them, or merge them",
            )
    return Found(tensors, notes, scales)


def _stem(name: str) -> str:
    return next((name.removesuffix(ending) for ending in _ENDINGS if name.endswith(ending)), name)


# --- torch.distributed -----------------------------------------------------------------------


def is_distributed(source: Source) -> bool:
    """Whether a folder is a checkpoint of ``torch.distributed.checkpoint``."""
    return source.is_folder and (source.path / _METADATA).is_file()


def read_distributed(source: Source) -> Found:
    """All tensors, put together of their pieces; without those of an optimizer."""
    metadata = source.beside(_METADATA)
    about = _fields(load_pickle(metadata.window.stream(), source.budget))
    described = about.get("state_dict_metadata")
    stored = about.get("storage_data")
    if not isinstance(described, Mapping) or not isinstance(stored, Mapping):
        raise Damaged("its list of tensors is missing")
    pieces: dict[str, list[tuple[tuple[int, ...], Mapping[str, Any]]]] = {}
    for index, place in stored.items():
        fields = _fields(index)
        name = str(fields.get("fqn", ""))
        if not name.startswith("optim"):
            pieces.setdefault(name, []).append((_numbers(fields.get("offset")), _fields(place)))
    tensors = {}
    for name, entry in described.items():
        size = _fields(entry).get("size")
        if size is not None and not str(name).startswith("optim"):
            shape = _numbers(size)
            tensors[str(name)] = _joined(source, str(name), shape, pieces.get(str(name), []))
    return Found(tensors)


def _fields(made: Any) -> Mapping[str, Any]:
    state = made.state if isinstance(made, Made) else None
    if isinstance(state, tuple) and len(state) == 2:
        state = state[1]
    return state if isinstance(state, Mapping) else {}


def _numbers(value: Any) -> tuple[int, ...]:
    if isinstance(value, Made) and len(value.args) == 1:
        value = value.args[0]
    value = value if isinstance(value, (tuple, list)) else ()
    if not all(isinstance(number, int) for number in value):
        raise Damaged("a shape that is none")
    return tuple(value)


def _joined(
    source: Source,
    name: str,
    shape: tuple[int, ...],
    pieces: list[tuple[tuple[int, ...], Mapping[str, Any]]],
) -> Tensor:
    size = checked_size(shape, name)
    read = [(offset, _piece(source, name, place)) for offset, place in pieces]
    if sum(tensor.numel() for _, tensor in read) != size:
        raise Damaged(f"{name} of shape {shape} is not whole")
    if len(read) == 1 and tuple(read[0][1].shape) == shape:
        return read[0][1]
    if not read:
        return torch.empty(shape)
    source.budget.charge(size * read[0][1].dtype.itemsize, name)
    whole = torch.zeros(shape, dtype=read[0][1].dtype)
    for offset, tensor in read:
        there = whole
        for place, (start, length) in enumerate(zip(offset, tensor.shape, strict=True)):
            if not 0 <= start <= start + length <= shape[place]:
                raise Damaged(f"a piece of {name} lies outside of it")
            there = there.narrow(place, start, length)
        there.copy_(tensor)
    return whole


def _piece(source: Source, name: str, place: Mapping[str, Any]) -> Tensor:
    file = source.beside(str(place.get("relative_path", "")))
    offset, length = place.get("offset"), place.get("length")
    if not isinstance(offset, int) or not isinstance(length, int):
        raise Damaged(f"it does not say where {name} is")
    if place.get("transform_descriptors"):
        raise Unsupported("its tensors are compressed", "save it without an extension")
    window: Window = file.window.part(offset, length, name)
    tensors = tensors_of_archive(window)
    if len(tensors) != 1:
        raise Damaged(f"a piece of {name} holds {len(tensors)} tensors")
    return tensors[0]
