"""Files that promise more than they hold, lead elsewhere or would run code, of each kind."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

Hostile = Callable[[Path], Path]
HUGE = 2**40
LARGE = 2**60


class Global:
    """A pickle that names a global, without it having to exist."""

    def __init__(self, module: str, name: str) -> None:
        self.data = f"c{module}\n{name}\n".encode()


def number(value: int) -> bytes:
    """A number in a pickle."""
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def text(value: str) -> bytes:
    """Text in a pickle."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def numbers(*values: int) -> bytes:
    """A tuple of numbers in a pickle."""
    return b"(" + b"".join(number(value) for value in values) + b"t"


def storage(count: int, key: str = "0", kind: str = "FloatStorage") -> bytes:
    """A storage by name in a pickle."""
    name = Global("torch", kind).data
    return b"(" + text("storage") + name + text(key) + text("cpu") + number(count) + b"tQ"


def strided(of: bytes, offset: int, shape: tuple[int, ...], steps: tuple[int, ...]) -> bytes:
    """A view of a storage in a pickle."""
    rest = b"\x89" + Global("collections", "OrderedDict").data + b")R"
    return (
        Global("torch._utils", "_rebuild_tensor_v2").data
        + b"("
        + of
        + number(offset)
        + numbers(*shape)
        + numbers(*steps)
        + rest
        + b"tR"
    )


def content(*tensors: bytes) -> bytes:
    """A pickled dict of tensors."""
    entries = b"".join(text(f"w{place}") + tensor for place, tensor in enumerate(tensors))
    return b"\x80\x02}(" + entries + b"u."


def archive(
    path: Path, pickled: bytes, stored: bytes = bytes(64), extra: dict[str, bytes] | None = None
) -> Path:
    """An archive of ``torch.save`` around a pickle."""
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("a/data.pkl", pickled)
        opened.writestr("a/data/0", stored)
        for name, data in (extra or {}).items():
            opened.writestr(f"a/{name}", data)
    return path


def _archive(pickled: bytes, extra: dict[str, bytes] | None = None) -> Hostile:
    return lambda folder: archive(folder / "h.pt", pickled, extra=extra)


def _many_views(folder: Path) -> Path:
    view = strided(storage(2**18), 0, (2**18,), (1,))
    return archive(folder / "h.pt", content(*[view] * 2000), bytes(2**20))


def _sparse(folder: Path) -> Path:
    tensor = torch.sparse_coo_tensor(
        torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (2**25, 2**25), check_invariants=True
    )
    torch.save({"w": tensor}, folder / "h.pt")
    return folder / "h.pt"


def _deflated(member: str) -> Hostile:
    def make(folder: Path) -> Path:
        with (
            zipfile.ZipFile(folder / "h.zip", "w", zipfile.ZIP_DEFLATED) as opened,
            opened.open(member, "w", force_zip64=True) as stream,
        ):
            for _ in range(128):
                stream.write(bytes(2**20))
        return folder / "h.zip"

    return make


def _directory(folder: Path) -> Path:
    archive(folder / "h.zip", content())
    data = bytearray((folder / "h.zip").read_bytes())
    # The size of the directory in its last record, and zeros where it would lie.
    struct.pack_into("<I", data, len(data) - 10, 2**29)
    (folder / "h.zip").write_bytes(bytes(data[:4]) + bytes(2**24) + bytes(data[4:]))
    return folder / "h.zip"


def _file(name: str, data: bytes) -> Hostile:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def _legacy(count: int) -> Hostile:
    def make(folder: Path) -> Path:
        torch.save({"w": torch.ones(4)}, folder / "h.pt", _use_new_zipfile_serialization=False)
        data = (folder / "h.pt").read_bytes()
        # The number of entries lies before the values.
        at = data.rindex(struct.pack("<q", 4))
        (folder / "h.pt").write_bytes(data[:at] + struct.pack("<q", count) + data[at + 8 :])
        return folder / "h.pt"

    return make


def _safetensors(header: dict[str, Any], stored: bytes = bytes(16)) -> bytes:
    written = json.dumps(header).encode()
    return struct.pack("<Q", len(written)) + written + stored


def _index(place: str) -> Hostile:
    def make(folder: Path) -> Path:
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps({"weight_map": {"w": place}}))
        return path

    return make


def _hub_folder(folder: Path) -> Path:
    _index("../../../../etc/passwd")(folder)
    return folder


def _distributed(metadata: bytes) -> Hostile:
    def make(folder: Path) -> Path:
        (folder / ".metadata").write_bytes(metadata)
        return folder

    return make


def _metadata(size: tuple[int, ...], path: str, length: int) -> bytes:
    """Metadata of a checkpoint in pieces, of one tensor in one piece."""

    def made(module: str, name: str, **state: bytes) -> bytes:
        fields = b"".join(text(key) + value for key, value in state.items())
        return Global(module, name).data + b")\x81}(" + fields + b"ub"

    base = "torch.distributed.checkpoint.metadata"
    entry = made(base, "TensorStorageMetadata", size=numbers(*size))
    index = made(base, "MetadataIndex", fqn=text("w"), offset=numbers(0))
    place = made(
        "torch.distributed.checkpoint.filesystem",
        "_StorageInfo",
        relative_path=text(path),
        offset=number(0),
        length=number(length),
    )
    whole = made(
        base,
        "Metadata",
        state_dict_metadata=b"}(" + text("w") + entry + b"u",
        storage_data=b"}(" + index + place + b"u",
    )
    return b"\x80\x02" + whole + b"."


def _npz(header: str) -> Hostile:
    def make(folder: Path) -> Path:
        data = header.encode()
        member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(data)) + data + bytes(16)
        with zipfile.ZipFile(folder / "h.npz", "w") as opened:
            opened.writestr("w.npy", member)
        return folder / "h.npz"

    return make


def _npy(shape: str, kind: str = "<f4") -> str:
    return "{'descr': '" + kind + "', 'fortran_order': False, 'shape': " + shape + ", }\n"


def _gguf(*parts: bytes, tensors: int = 0, values: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, values) + b"".join(parts)


def _gguf_text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def field(number_: int, value: bytes | int) -> bytes:
    """A field of a protocol buffer."""
    if isinstance(value, int):
        return varint(number_ << 3) + varint(value)
    return varint(number_ << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    """A number of a protocol buffer."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _onnx(*tensors: bytes) -> bytes:
    return field(1, 8) + field(7, b"".join(field(5, tensor) for tensor in tensors))


def _onnx_outside(location: str, offset: int = 0, length: int = 16) -> bytes:
    entries = {"location": location, "offset": str(offset), "length": str(length)}
    pairs = b"".join(
        field(13, field(1, key.encode()) + field(2, value.encode()))
        for key, value in entries.items()
    )
    return _onnx(field(1, 4) + field(2, 1) + field(8, b"w") + pairs + field(14, 1))


def _nested_graphs(depth: int) -> bytes:
    graph = b""
    for _ in range(depth):
        graph = field(1, field(4, b"If") + field(5, field(6, graph)))
    return field(1, 8) + field(7, graph)


def _mil(*operations: bytes) -> bytes:
    block = b"".join(field(3, operation) for operation in operations)
    function = field(3, field(1, b"m") + field(2, block))
    return field(1, 8) + field(502, field(2, field(1, b"main") + field(2, function)))


def _mil_constant(shape: tuple[int, ...], file: str, offset: int) -> bytes:
    sides = b"".join(field(3, field(1, field(1, side))) for side in shape)
    kind = field(1, field(1, 11) + field(2, len(shape)) + sides)
    value = field(2, kind) + field(5, field(1, file.encode()) + field(2, offset))
    return (
        field(1, b"const") + field(3, field(1, b"w")) + field(5, field(1, b"val") + field(2, value))
    )


def _package(program: bytes, weights: bytes) -> Hostile:
    def make(folder: Path) -> Path:
        inside = folder / "h.mlpackage" / "Data" / "com.apple.CoreML"
        (inside / "weights").mkdir(parents=True)
        (inside / "model.mlmodel").write_bytes(program)
        (inside / "weights" / "weight.bin").write_bytes(weights)
        return folder / "h.mlpackage"

    return make


def _tflite(change: Callable[[bytearray], None]) -> Hostile:
    def make(folder: Path) -> Path:
        from benchmarks.suspects.tflite_makers import write_tflite

        path = folder / "h.tflite"
        write_tflite(path, {"w": (torch.ones(3, 5), None, 0)})
        data = bytearray(path.read_bytes())
        change(data)
        path.write_bytes(data)
        return path

    return make


def _set(old: bytes, new: bytes) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        at = data.index(old)
        data[at : at + len(old)] = new

    return change


def _root_outside(data: bytearray) -> None:
    data[:4] = struct.pack("<I", 2**31)


def _h5(fill: Callable[[Any], None]) -> Hostile:
    def make(folder: Path) -> Path:
        import h5py

        with h5py.File(folder / "h.h5", "w") as opened:
            fill(opened)
        return folder / "h.h5"

    return make


def _h5_bomb(opened: Any) -> None:
    opened.create_dataset(
        "w", (2**28,), dtype="f4", chunks=(2**20,), compression="gzip", fillvalue=0.0
    )
    for place in range(4):
        opened["w"][place * 2**20 : (place + 1) * 2**20] = 0.0


def _h5_outside(opened: Any) -> None:
    opened.create_dataset("w", (4,), dtype="f4", external=[("/etc/passwd", 0, 16)])


def _h5_linked(opened: Any) -> None:
    import h5py

    opened["w"] = h5py.ExternalLink("/etc/hostname", "/w")


def _keras(folder: Path) -> Path:
    inside = _h5(_h5_bomb)(folder)
    with zipfile.ZipFile(folder / "h.keras", "w") as opened:
        opened.writestr("config.json", "{}")
        opened.write(inside, "model.weights.h5")
    return folder / "h.keras"


def _program(path: str, size: int, offset: int) -> Hostile:
    def make(folder: Path) -> Path:
        described = {
            "dtype": 7,
            "sizes": [{"as_int": size}],
            "strides": [{"as_int": 1}],
            "storage_offset": {"as_int": offset},
        }
        entry = {"path_name": path, "use_pickle": False, "tensor_meta": described}
        with zipfile.ZipFile(folder / "h.pt2", "w") as opened:
            opened.writestr("a/archive_format", "pt2")
            opened.writestr(
                "a/data/weights/model_weights_config.json", json.dumps({"config": {"w": entry}})
            )
            opened.writestr("a/data/weights/weight_0", bytes(16))
        return folder / "h.pt2"

    return make


def _nested_tuples(depth: int) -> bytes:
    return b"\x80\x02}" + b")" + b"\x85" * depth + b"K\x01s."


class Escape:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch /tmp/passportize_was_here",)


HOSTILE: dict[str, dict[str, Hostile]] = {
    "a torch checkpoint": {
        "stride 0": _archive(content(strided(storage(16), 0, (HUGE,), (0,)))),
        "storage of 2^60": _archive(content(strided(storage(LARGE), 0, (LARGE,), (1,)))),
        "beyond the storage": _archive(content(strided(storage(16), 2**62, (2,), (2**62,)))),
        "negative stride": _archive(content(strided(storage(16), 8, (4,), (-1,)))),
        "thousands of views": _many_views,
        "sparse": _sparse,
        "memo of 2^31": _archive(b"\x80\x02}r\xff\xff\xff\x7f."),
        "bytes of 2^62": _archive(b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"."),
        "tuples in tuples as a key": _archive(_nested_tuples(900_000)),
        "millions of steps": _archive(b"\x80\x02" + b"}" * 3_000_000 + b"."),
        "a ring": _archive(b"\x80\x02]q\x00h\x00a."),
        "laughs": _archive(b"\x80\x02]" + b"q\x00](h\x00h\x00h\x00h\x00e" * 40 + b"."),
        "packed": _deflated("a/data.pkl"),
        "no memory for names": _directory,
        "storage missing": _archive(content(strided(storage(4, "../../x"), 0, (4,), (1,)))),
        "code": _archive(pickle.dumps({"w": Escape()}, protocol=2)),
    },
    "a TorchScript archive": {
        "stride 0": _archive(
            content(strided(storage(16), 0, (HUGE,), (0,))), {"constants.pkl": b"\x80\x02)."}
        ),
    },
    "a torch checkpoint of the old format": {
        "2^60 entries": _legacy(LARGE),
        "a negative number": _legacy(-4),
    },
    "a pickle": {
        "code": _file("h.pkl", pickle.dumps(Escape())),
        "an array of 2^40": _file(
            "h.pkl",
            pickle.dumps({"w": np.arange(7, dtype="<f4")}, protocol=2).replace(
                b"K\x07\x85", b"\x8a\x06" + HUGE.to_bytes(6, "little") + b"\x85"
            ),
        ),
    },
    "an exported program": {
        "2^40 entries": _program("weight_0", HUGE, 0),
        "far offset": _program("weight_0", 2, 2**62),
        "another path": _program("../../../../etc/passwd", 4, 0),
    },
    "a safetensors file": {
        "header of 2^60": _file("h.safetensors", struct.pack("<Q", LARGE) + b"{}"),
        "2^40 entries": _file(
            "h.safetensors",
            _safetensors({"w": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4 * HUGE]}}),
        ),
        "header of 40 MB": _file(
            "h.safetensors", struct.pack("<Q", 40 * 2**20) + b'{"a":[' + b"[]," * (14 * 2**20)
        ),
    },
    "a list of shards": {
        "another folder": _index("../../../../etc/passwd"),
        "an absolute path": _index("/etc/passwd"),
        "itself": _index("model.safetensors.index.json"),
    },
    "a folder of weights": {"another folder": _hub_folder},
    "a torch.distributed checkpoint": {
        "2^40 entries": _distributed(_metadata((HUGE,), "x.distcp", 16)),
        "another folder": _distributed(_metadata((4,), "../../../../etc/passwd", 16)),
        "code": _distributed(pickle.dumps(Escape())),
    },
    "an npz archive": {
        "2^40 entries": _npz(_npy(f"({HUGE},)")),
        "negative": _npz(_npy("(-4,)")),
        "no header": _npz("[" * 5000),
        "packed": _deflated("w.npy"),
    },
    "an npy file": {
        "objects": _file(
            "h.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", 60) + _npy("(1,)", "|O").encode()[:60]
        ),
    },
    "a GGUF file": {
        "2^60 values": _file("h.gguf", _gguf(values=LARGE)),
        "2^60 tensors": _file("h.gguf", _gguf(tensors=LARGE)),
        "an array of 2^60": _file(
            "h.gguf", _gguf(_gguf_text("a"), struct.pack("<IIQ", 9, 0, LARGE), values=1)
        ),
        "2^40 entries": _file(
            "h.gguf",
            _gguf(_gguf_text("w"), struct.pack("<IQIQ", 1, HUGE, 0, 0), bytes(64), tensors=1),
        ),
        "millions of texts": _file(
            "h.gguf",
            _gguf(_gguf_text("a"), struct.pack("<IIQ", 9, 8, LARGE), bytes(2**24), values=1),
        ),
    },
    "a TensorFlow Lite model": {
        "2^31 entries": _tflite(
            _set(struct.pack("<ii", 3, 5), struct.pack("<ii", 2**31 - 1, 2**31 - 1))
        ),
        "a root outside": _tflite(_root_outside),
        "zeros": _file("h.tflite", bytes(4) + b"TFL3" + bytes(2**20)),
    },
    "an HDF5 file": {
        "packed": _h5(_h5_bomb),
        "no values": _h5(lambda opened: opened.create_dataset("w", (HUGE,), dtype="f4")),
        "another file": _h5(_h5_outside),
        "a link out": _h5(_h5_linked),
    },
    "a Keras archive": {"packed": _keras},
    "an ONNX model": {
        "2^40 entries": _file(
            "h.onnx", _onnx(field(1, HUGE) + field(2, 1) + field(8, b"w") + field(9, bytes(16)))
        ),
        "another folder": _file("h.onnx", _onnx_outside("../../../../etc/passwd")),
        "an absolute path": _file("h.onnx", _onnx_outside("/etc/passwd")),
        "itself, far away": _file("h.onnx", _onnx_outside("h.onnx", 2**62, 2**62)),
        "graphs in graphs": _file("h.onnx", _nested_graphs(200)),
        "millions of fields": _file("h.onnx", field(7, field(2, b"") * 4_000_000)),
        "a run of zeros as numbers": _file(
            "h.onnx",
            _onnx(field(1, 2**23) + field(2, 7) + field(8, b"w") + field(7, bytes(2**23 - 1))),
        ),
    },
    "a Core ML model": {
        "millions of fields": _file(
            "h.mlmodel", field(1, 8) + field(500, field(1, b"") * 4_000_000)
        ),
        "another folder": _file("h.mlmodel", _mil(_mil_constant((4,), "../../etc/passwd", 0))),
    },
    "a Core ML package": {
        "2^40 entries": _package(
            _mil(_mil_constant((HUGE,), "@model_path/weights/weight.bin", 64)),
            bytes(64) + struct.pack("<IIQQ", 0xDEADBEEF, 2, 4 * HUGE, 128) + bytes(104),
        ),
        "no weight there": _package(
            _mil(_mil_constant((4,), "@model_path/weights/weight.bin", LARGE)), bytes(256)
        ),
    },
}
"""Makers of hostile files by the name of their kind."""
