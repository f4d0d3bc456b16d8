"""Files that torch writes: checkpoints, whole models, TorchScript archives, exported programs."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from passportize.suspects.archive import Archive, is_archive
from passportize.suspects.pickle_machine import Made
from passportize.suspects.refusals import Damaged, Unsupported
from passportize.suspects.source import Found, Source
from passportize.suspects.torch_pickle import Storage, load_pickle, storage_name
from passportize.suspects.weights_of import named_tensors, weights_of
from passportize.suspects.window import Budget, Window

__all__ = [
    "LEGACY",
    "is_checkpoint",
    "is_legacy",
    "is_pickle",
    "is_program",
    "is_script",
    "read_checkpoint_file",
    "read_legacy",
    "read_pickle",
    "read_program",
    "read_script",
    "tensors_of_archive",
]

LEGACY = bytes.fromhex("8a0a6cfc9c46f9206aa850192e")
"""The magic number of torch before it wrote archives, as a pickle has it behind its protocol."""

# The enumeration of an exported program, torch/_export/serde/schema.py.
_PROGRAM_TYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
    28: torch.uint16,
    29: torch.float8_e4m3fn,
    30: torch.float8_e5m2,
}


def _folder(archive: Archive, file: str) -> str | None:
    """The folder of an archive that has a file, with its slash; None without."""
    for name in archive.names:
        if name == file or name.endswith("/" + file):
            return name.removesuffix(file)
    return None


# --- archives --------------------------------------------------------------------------------


def is_script(source: Source) -> bool:
    """Whether a file is a TorchScript archive, also one for mobile."""
    if source.archive is None or _folder(source.archive, "data.pkl") is None:
        return False
    return _folder(source.archive, "constants.pkl") is not None or any(
        "/code/" in name for name in source.archive.names
    )


def is_checkpoint(source: Source) -> bool:
    """Whether a file is one of ``torch.save``."""
    return source.archive is not None and _folder(source.archive, "data.pkl") is not None


def is_program(source: Source) -> bool:
    """Whether a file is one of ``torch.export.save``."""
    if source.archive is None:
        return False
    places = ("archive_format", "serialized_exported_program.json")
    return any(_folder(source.archive, place) is not None for place in places)


def _content(archive: Archive, budget: Budget, file: str, data: str) -> Any:
    """What a pickle of an archive describes; its storages lie in the folder ``data``."""
    folder = _folder(archive, file)
    if folder is None:
        raise Damaged(f"member {file} is missing")
    if folder + "byteorder" in archive and archive.text(folder + "byteorder") != b"little":
        raise Unsupported("its numbers are big-endian", "save it anew on a usual machine")

    def storage(identity: Any) -> Storage:
        dtype, key, size = storage_name(identity)
        return Storage(dtype, archive.member(f"{folder}{data}/{key}")).of(size)

    return load_pickle(archive.member(folder + file).stream(), budget, storage)


def content_of_archive(window: Window) -> Any:
    """What an archive of ``torch.save`` holds."""
    return _content(Archive(window), window.budget, "data.pkl", "data")


def tensors_of_archive(window: Window) -> list[Tensor]:
    """All tensors of an archive of ``torch.save``, whatever holds them."""
    return list(named_tensors(content_of_archive(window), window.budget).values())


def read_checkpoint_file(source: Source) -> Found:
    """A state dict, a training checkpoint or a whole model, as ``torch.save`` writes it."""
    return weights_of(content_of_archive(source.window), source.key, source.budget)


def read_script(source: Source) -> Found:
    """Parameters and buffers of a TorchScript archive, and the constants of a frozen one."""
    archive = source.members
    tensors = named_tensors(_content(archive, source.budget, "data.pkl", "data"), source.budget)
    notes = []
    if _folder(archive, "constants.pkl") is not None:
        content = _content(archive, source.budget, "constants.pkl", "constants")
        frozen = named_tensors(content, source.budget)
        if frozen and not tensors:
            notes.append("it is frozen: its weights are constants without names")
        tensors.update({f"constants.{name}": tensor for name, tensor in frozen.items()})
    return Found(tensors, notes)


def read_program(source: Source) -> Found:
    """Parameters, buffers and constants of an exported program."""
    archive = source.members
    tensors: dict[str, Tensor] = {}
    for name in archive.names:
        if name.endswith(("_weights_config.json", "_constants_config.json")):
            folder = name[: name.rfind("/") + 1]
            listed = json.loads(archive.text(name)).get("config", {})
            for weight, entry in listed.items():
                if (tensor := _weight(archive, folder, weight, entry)) is not None:
                    tensors[weight] = tensor
        elif name.endswith(("serialized_state_dict.pt", "serialized_constants.pt")):
            # Before torch 2.8.
            inside = archive.member(name)
            if is_archive(inside):
                tensors.update(named_tensors(content_of_archive(inside), source.budget))
    if not tensors and any(name.endswith(".so") for name in archive.names):
        raise Unsupported(
            "it was compiled, and its weights lie within machine code", "get it before compilation"
        )
    return Found(tensors)


def _weight(archive: Archive, folder: str, name: str, entry: Any) -> Tensor | None:
    """One weight of an exported program by its description."""
    window = archive.member(folder + str(entry["path_name"]))
    described = entry.get("tensor_meta")
    if entry.get("use_pickle") or described is None:
        if not is_archive(window):
            return None
        tensors = tensors_of_archive(window)
        return tensors[0] if len(tensors) == 1 else None
    dtype = _PROGRAM_TYPES.get(described["dtype"])
    if dtype is None:
        return None
    shape, steps = (
        tuple(int(side["as_int"]) for side in described[field]) for field in ("sizes", "strides")
    )
    offset = int(described["storage_offset"]["as_int"])
    return Storage(dtype, window).strided(offset, shape, steps)


# --- pickles without an archive ---------------------------------------------------------------


def is_legacy(source: Source) -> bool:
    """Whether a file is one of ``torch.save`` before torch 1.6."""
    head = source.head(2 + len(LEGACY))
    return head[:1] == b"\x80" and head[2:] == LEGACY


def is_pickle(source: Source) -> bool:
    """Whether a file is a plain pickle of protocol 2 or later."""
    head = source.head(2)
    return len(head) == 2 and head[0] == 0x80 and 2 <= head[1] <= 5


def read_legacy(source: Source) -> Found:
    """As :func:`read_checkpoint_file`, in the format before archives."""
    return weights_of(_legacy_content(source.window), source.key, source.budget)


def _legacy_content(window: Window) -> Any:
    """What a file in the old format holds: three pickles ahead, the content, then the storages."""
    stream = window.stream()
    for _ in range(3):
        load_pickle(stream, window.budget)
    start = stream.tell()
    wanted: dict[str, tuple[torch.dtype, int]] = {}

    def ask(identity: Any) -> None:
        if isinstance(identity, tuple) and identity[:1] == ("module",):
            return
        dtype, key, size = storage_name(identity)
        wanted[key] = dtype, size

    load_pickle(stream, window.budget, ask)
    keys = load_pickle(stream, window.budget)
    place = stream.tell()
    storages: dict[str, Storage] = {}
    for key in keys:
        dtype, size = wanted[key]
        (count,) = window.unpack("<q", place, "a storage")
        if count != size:
            raise Damaged(f"storage {key} has {count} entries, not {size}")
        length = count * dtype.itemsize
        storages[key] = Storage(dtype, window.part(place + 8, length, f"storage {key}"))
        place += 8 + length

    def give(identity: Any) -> Any:
        if isinstance(identity, tuple) and identity[:1] == ("module",):
            # A whole model was saved with the source text of its classes.
            return identity[1] if len(identity) > 1 else None
        _, key, size = storage_name(identity)
        found = storages[key].of(size)
        view = identity[5] if len(identity) > 5 else None
        return found if view is None else found.cut(view)

    stream.seek(start)
    return load_pickle(stream, window.budget, give)


def read_pickle(source: Source) -> Found:
    """A pickle of tensors or arrays that was not written by ``torch.save``."""
    window = source.window

    def nested(data: Any) -> Any:
        inside = Window(memoryview(bytearray(data)), window.budget)
        return content_of_archive(inside) if is_archive(inside) else _legacy_content(inside)

    content = load_pickle(window.stream(), window.budget, None, nested)
    if isinstance(content, Made) and not named_tensors(content, source.budget):
        raise Unsupported(f"it is a pickle of {content.of}", "get the weights themselves")
    return weights_of(content, source.key, source.budget)
