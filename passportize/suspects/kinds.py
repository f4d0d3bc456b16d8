"""The kinds of files that are read as suspects: one line each, told apart by what is in them.

Order matters where one kind contains another: a TorchScript archive is also an archive with a
pickle. Names of files are not looked at, only those in a folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from passportize.suspects import (
    coreml_file,
    folders,
    gguf_file,
    hdf5_file,
    numpy_files,
    onnx_file,
    safetensors_file,
    tflite_file,
    torch_files,
)
from passportize.suspects.refusals import Damaged, Unsupported
from passportize.suspects.source import Found, Source

__all__ = ["KINDS", "Kind", "kind_of"]


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: What it is called in messages, with its article.
        recognise: Whether a file or folder is of this kind.
        read: Its tensors.
        common: Whether weights of torch usually come so, and nothing needs to be said about it.
    """

    name: str
    recognise: Callable[[Source], bool]
    read: Callable[[Source], Found]
    common: bool = False


def _opened(source: Source) -> Found:
    """What is in a file of a folder, of whatever kind it is."""
    kind = kind_of(source)
    if kind is None:
        raise Damaged(f"{source.path.name} is no file of weights")
    return kind.read(source)


def _shard(source: Source) -> Found:
    """What is in a file that a list names: any kind but another list."""
    if folders.is_index(source):
        raise Damaged(f"{source.path.name} is a list itself")
    return _opened(source)


def _unread(remedy: str) -> Callable[[Source], Found]:
    def read(source: Source) -> Found:
        raise Unsupported("it is not looked into", remedy)

    return read


def _begins(*marks: bytes) -> Callable[[Source], bool]:
    return lambda source: any(source.head(len(mark)) == mark for mark in marks)


def _is_tar(source: Source) -> bool:
    return source.head(262)[257:] == b"ustar"


def _is_saved_model(source: Source) -> bool:
    return source.is_folder and (source.path / "saved_model.pb").is_file()


KINDS: tuple[Kind, ...] = (
    Kind("a Core ML package", coreml_file.is_coreml_package, coreml_file.read_coreml_package),
    Kind("a torch.distributed checkpoint", folders.is_distributed, folders.read_distributed),
    Kind("a TensorFlow SavedModel", _is_saved_model, _unread("convert it to TensorFlow Lite")),
    Kind(
        "a folder of weights",
        folders.is_model_folder,
        lambda source: folders.read_model_folder(source, _opened),
    ),
    Kind(
        "a safetensors file",
        safetensors_file.is_safetensors,
        safetensors_file.read_safetensors,
        common=True,
    ),
    Kind("a list of shards", folders.is_index, lambda source: folders.read_index(source, _shard)),
    Kind("an exported program", torch_files.is_program, torch_files.read_program),
    Kind("a TorchScript archive", torch_files.is_script, torch_files.read_script),
    Kind(
        "a torch checkpoint",
        torch_files.is_checkpoint,
        torch_files.read_checkpoint_file,
        common=True,
    ),
    Kind("a Keras archive", hdf5_file.is_keras, hdf5_file.read_keras),
    Kind("an npz archive", numpy_files.is_npz, numpy_files.read_npz),
    Kind("a zip archive", _begins(b"PK\x03\x04"), _unread("unpack it first")),
    Kind(
        "a torch checkpoint of the old format",
        torch_files.is_legacy,
        torch_files.read_legacy,
        common=True,
    ),
    Kind("an npy file", numpy_files.is_npy, numpy_files.read_npy),
    Kind("a pickle", torch_files.is_pickle, torch_files.read_pickle),
    Kind("a GGUF file", gguf_file.is_gguf, gguf_file.read_gguf),
    Kind("a TensorFlow Lite model", tflite_file.is_tflite, tflite_file.read_tflite),
    Kind("an HDF5 file", hdf5_file.is_hdf5, hdf5_file.read_hdf5),
    Kind(
        "a packed file",
        _begins(b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf", b"Rar!"),
        _unread("unpack it first"),
    ),
    Kind("a tar archive", _is_tar, _unread("unpack it first")),
    Kind("an ONNX model", onnx_file.is_onnx, onnx_file.read_onnx),
    Kind("a Core ML model", coreml_file.is_coreml, coreml_file.read_coreml),
)


def kind_of(source: Source) -> Kind | None:
    """The kind of a file or folder, None if it is none of those that are known."""
    return next((kind for kind in KINDS if kind.recognise(source)), None)
