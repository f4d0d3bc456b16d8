"""The tensors of a suspect's file, whatever kind of file it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from passportize.errors import CheckpointError, PassportizeError
from passportize.release.checkpoint import without_prefixes
from passportize.suspects.archive import is_archive
from passportize.suspects.effective import effective
from passportize.suspects.kinds import KINDS, kind_of
from passportize.suspects.refusals import Damaged, Unsupported
from passportize.suspects.source import Source

__all__ = ["Opened", "plain_layers", "read_suspect"]


@dataclass(frozen=True)
class Opened:
    """What a suspect's file holds.

    Attributes:
        path: The file or folder; empty for what lay in memory.
        kind: What kind of file it is, with its article.
        common: Whether weights of torch usually come so.
        tensors: Tensors by the names of the plain layers, on the CPU. Those that lie in the file
            as they are are views of it and take no memory until they are looked at.
        kept: Tensors as they are kept, before adapters, masks and the like were put in.
        notes: What the reader of a verdict should know.
    """

    path: str
    kind: str
    common: bool
    tensors: dict[str, Tensor]
    kept: dict[str, Tensor]
    notes: tuple[str, ...]


def read_suspect(path: str | os.PathLike[str], key: str | None = None) -> Opened:
    """Read the tensors of a file or folder that nobody vouches for, as data.

    Nothing in it is executed or imported, no other file is read than those in its folder that it
    names, and no size is believed that its bytes do not bear out.

    Args:
        path: The file, or the folder of one that consists of several.
        key: Where in a training checkpoint to look, ``"state_dict_ema"`` say, if not in the usual
            place.

    Raises:
        CheckpointError: It is missing, damaged, of no known kind, or holds no tensors; the message
            names the kind.
        MissingExtra: Its kind is read by a package that is not installed.
    """
    place = Path(path)
    source = Source(place, key)
    name = "a file"
    try:
        if not os.path.lexists(place):
            raise Unsupported("no such file or folder", "check the path")
        if not source.is_folder and is_archive(source.window):
            name = "a zip archive"
        kind = kind_of(source)
        if kind is None:
            raise CheckpointError(f"{place}: {_unknown(source)}")
        name = kind.name
        found = kind.read(source)
        tensors, notes = effective(found.tensors, found.scales)
        if not tensors:
            raise Unsupported("it holds no tensors", "get the file with the weights")
        return Opened(
            str(place),
            kind.name,
            kind.common,
            without_prefixes(tensors, place),
            without_prefixes(found.tensors, place),
            tuple(_said(note) for note in (*found.notes, *notes)),
        )
    except PassportizeError:
        raise
    except Unsupported as error:
        what = "" if name == "a file" else f"this is {name}, but "
        raise CheckpointError(f"{place}: {what}{_said(error)}; {error.remedy}") from None
    except Damaged as error:
        what = "it is damaged" if name == "a file" else f"this is {name}, and it is damaged"
        raise CheckpointError(
            f"{place}: {what}: {_said(error)}; get a complete copy of it"
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"{place}: {error.strerror or _said(error)}; check the path"
        ) from None
    except Exception as error:
        # A reader that meets what its format does not provide for.
        raise CheckpointError(
            f"{place}: this is {name}, which cannot be made sense of "
            f"({type(error).__name__}: {_said(error)}); get a complete copy of it"
        ) from None


def _said(error: object) -> str:
    """A message as one line; what a file calls its tensors is not sent to a terminal as it is."""
    line = str(error).partition("\n")[0][:300]
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def plain_layers(
    tensors: Mapping[str, Tensor], module: nn.Module | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights in memory by the names of the plain layers.

    Args:
        tensors: Tensors by name, as they are kept.
        module: The model that they are of, which knows the scales of its adapters.

    Raises:
        CheckpointError: Parts that belong together, as a weight and its mask, do not fit.
    """
    scales = {}
    for name, layer in module.named_modules() if module is not None else ():
        scaling = getattr(layer, "scaling", None)
        if isinstance(scaling, Mapping) and len(scaling) == 1 and hasattr(layer, "lora_A"):
            scales[name] = float(next(iter(scaling.values())))
    try:
        return effective(tensors, scales)
    except Damaged as error:
        raise CheckpointError(f"the suspect: {error}; get a complete copy of it") from None


def _unknown(source: Source) -> str:
    names = ", ".join(kind.name.partition(" ")[2] for kind in KINDS)
    if source.is_folder:
        return f"this folder holds no weights of a known kind; name the file itself ({names})"
    start = source.head(8)
    return (
        f"this is no file of weights of a known kind (it begins with {start!r}); those that are "
        f"known: {names}"
    )
