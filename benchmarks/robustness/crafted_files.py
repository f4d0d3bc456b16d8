"""What becomes of files that were damaged or crafted: read, or an error of ours, and nothing else.

Files of every kind that the library reads (passports, claims, commitments, checkpoints, suspects of
other frameworks) are changed at random: cut, with bytes changed, zeroed, repeated or moved, numbers
made huge, members of an archive changed and packed again so that their checksums hold. Each must
be read or refused by an error of `passportize.errors`, within two seconds and 200 MB. Anything
else is a fault, and is listed with the number that makes the file again.

    python -m benchmarks.robustness.crafted_files   # writes results/crafted_files.json and .md
"""

from __future__ import annotations

import argparse
import io
import random
import resource
import struct
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import passportize as pp
from benchmarks.common.paths import RESULTS
from benchmarks.common.records import heading, write_record
from benchmarks.suspects.kinds_made import MADE
from passportize.errors import PassportizeError
from passportize.passport.sealing import ScryptCost, seal
from passportize.release.checkpoint import load_weights
from passportize.release.claim_file import write_claim
from passportize.suspects import read_suspect
from tests.support.found_files import OWNER, marked, quiet, write

COUNT = 700
SECONDS, MEGABYTES = 2.0, 200
SUSPECTS = (
    "torch state dict",
    "old torch format",
    "whole model, pickled",
    "safetensors",
    "TorchScript",
    "exported program",
    "ONNX",
    "npz",
    "GGUF",
    "Keras h5",
    "Core ML network",
)
Reader = Callable[[Path], object]
Kinds = dict[str, tuple[bytes, Reader]]


def kinds(folder: Path) -> Kinds:
    """A valid file of every kind, and what reads it."""
    made: Kinds = {}
    passport = folder / "acme.passport"
    OWNER.save(passport)
    made["passport"] = (passport.read_bytes(), pp.Passport.load)
    sealed = seal(passport.read_bytes(), "a passphrase", ScryptCost(2**8, 8, 1))
    made["sealed passport"] = (sealed, lambda path: pp.Passport.load(path, "a passphrase"))
    model, claim = marked()
    write_claim(claim, folder / "acme.claim.safetensors")
    made["claim"] = ((folder / "acme.claim.safetensors").read_bytes(), pp.load_claim)
    torch.save({"state_dict": model.state_dict()}, folder / "checkpoint.pt")
    made["checkpoint"] = ((folder / "checkpoint.pt").read_bytes(), load_weights)
    for kind in SUSPECTS:
        place = folder / kind.replace(" ", "_")
        place.mkdir()
        with quiet():
            path = write(MADE[kind]["plain"], place)
        made[f"suspect: {kind}"] = (path.read_bytes(), read_suspect)
    return made


# --- changes ----------------------------------------------------------------------------------

HUGE = (2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1, 0)


def changed(data: bytes, dice: random.Random) -> tuple[str, bytes]:
    """A changed file, and in what way."""
    way = dice.choice([*WAYS, "a member of the archive"])
    if way == "a member of the archive":
        repacked = _member(data, dice)
        if repacked is not None:
            return way, repacked
        way = "a byte"
    return way, WAYS[way](data, dice)


def _place(data: bytes, dice: random.Random) -> int:
    # Heads and tails hold what leads to the rest.
    ends = dice.choice([(0, 512), (0, len(data)), (len(data) - 512, len(data))])
    return dice.randrange(max(0, ends[0]), max(1, min(len(data), ends[1])))


def _cut(data: bytes, dice: random.Random) -> bytes:
    return data[: _place(data, dice)]


def _byte(data: bytes, dice: random.Random) -> bytes:
    at = _place(data, dice)
    return data[:at] + bytes([dice.randrange(256)]) + data[at + 1 :]


def _bytes(data: bytes, dice: random.Random) -> bytes:
    for _ in range(dice.choice((2, 5, 20))):
        data = _byte(data, dice)
    return data


def _zeros(data: bytes, dice: random.Random) -> bytes:
    at, length = _place(data, dice), dice.choice((4, 16, 64))
    return data[:at] + bytes(length) + data[at + length :]


def _again(data: bytes, dice: random.Random) -> bytes:
    at, length = _place(data, dice), dice.choice((1, 8, 100, 1000))
    return data[:at] + data[at : at + length] * dice.choice((2, 20)) + data[at + length :]


def _moved(data: bytes, dice: random.Random) -> bytes:
    first, second = sorted((_place(data, dice), _place(data, dice)))
    return data[:first] + data[second:] + data[first:second]


def _number(data: bytes, dice: random.Random) -> bytes:
    at, width = _place(data, dice), dice.choice("IQ")
    number = dice.choice(HUGE) % 2 ** (8 * struct.calcsize(width))
    packed = struct.pack(dice.choice("<>") + width, number)
    return data[:at] + packed + data[at + len(packed) :]


def _digits(data: bytes, dice: random.Random) -> bytes:
    places = [at for at, value in enumerate(data[:4096]) if chr(value).isdigit()]
    if not places:
        return _byte(data, dice)
    at = dice.choice(places)
    return data[:at] + str(dice.choice((-1, 10**9, 2**40, 10**30))).encode() + data[at + 1 :]


def _swapped(data: bytes, dice: random.Random) -> bytes:
    words = [
        b"float32",
        b"F32",
        b"torch",
        b"weight",
        b"shape",
        b"FloatStorage",
        b"null",
        b"{",
        b"[",
    ]
    there = [word for word in words if word in data]
    other = [b"\x00", b"__reduce__", b"os", b"\xff\xfe", b"F64", b"}" * 50, b"[" * 5000, b"-1"]
    if not there:
        return _byte(data, dice)
    return data.replace(dice.choice(there), dice.choice(other), dice.choice((1, 10)))


WAYS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut": _cut,
    "a byte": _byte,
    "some bytes": _bytes,
    "zeros": _zeros,
    "repeated": _again,
    "moved": _moved,
    "a huge number": _number,
    "other digits": _digits,
    "other words": _swapped,
}


def _member(data: bytes, dice: random.Random) -> bytes | None:
    """One member changed, its checksum right again; None where this is no archive."""
    try:
        members = zipfile.ZipFile(io.BytesIO(data))
    except zipfile.BadZipFile:
        return None
    target = dice.choice(members.namelist())
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as new:
        for info in members.infolist():
            content = members.read(info)
            if info.filename == target and content:
                content = WAYS[dice.choice(list(WAYS))](content, dice)
            new.writestr(info, content)
    return packed.getvalue()


# --- outcomes ---------------------------------------------------------------------------------


def outcome(path: Path, reader: Reader) -> tuple[str, str]:
    """What became of a file: read, refused by which error, or a fault and which."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader(path)
    except PassportizeError as error:
        return "refused", type(error).__name__
    except Exception as error:
        return "fault", f"{type(error).__name__}: {error}"[:200]
    return "read", ""


def memory() -> float:
    """The most memory that the process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, data: bytes, reader: Reader, count: int, folder: Path) -> dict[str, Any]:
    """All changed files of one kind."""
    path = folder / "crafted"
    path.write_bytes(data)
    path.chmod(0o600)
    if outcome(path, reader)[0] != "read":
        raise SystemExit(f"{name}: the file as it was made is not read: {outcome(path, reader)}")
    outcomes: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    faults, slowest, most = [], 0.0, 0.0
    for number in range(count):
        dice = random.Random(f"{name} {number}")
        way, crafted = changed(data, dice)
        path.write_bytes(crafted)
        before, start = memory(), time.process_time()
        what, why = outcome(path, reader)
        seconds, megabytes = time.process_time() - start, memory() - before
        slowest, most = max(slowest, seconds), max(most, megabytes)
        if seconds > SECONDS or megabytes > MEGABYTES:
            what, why = "fault", f"{seconds:.1f} s, {megabytes:.0f} MB"
        outcomes[what] += 1
        if what == "refused":
            errors[why] += 1
        elif what == "fault":
            faults.append({"number": number, "way": way, "what": why})
    return {
        "files": count,
        **{what: outcomes[what] for what in ("read", "refused", "fault")},
        "errors": dict(errors.most_common()),
        "faults": faults,
        "slowest": round(slowest, 3),
        "most megabytes": round(most, 1),
    }


def table(record: dict[str, Any]) -> str:
    """The results as Markdown."""
    rows = record["kinds"]
    total = sum(row["files"] for row in rows.values())
    faults = sum(row["fault"] for row in rows.values())
    lines = [
        "# Crafted files",
        "",
        f"`{record['command']}`; {record['machine']}, torch {record['torch']}. {total:,} files, "
        f"changed at random; {faults} faults. Read: what was changed does not matter to the reader "
        "(the bytes of a tensor, say). Refused: an error of the library. Fault: anything else, or "
        f"more than {SECONDS:.0f} seconds or {MEGABYTES} MB.",
        "",
        "| kind | files | read | refused | faults | slowest | most memory | errors |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        errors = ", ".join(f"{error} {count}" for error, count in row["errors"].items())
        lines.append(
            f"| {name} | {row['files']} | {row['read']} | {row['refused']} | {row['fault']} | "
            f"{row['slowest']:.2f} s | {row['most megabytes']:.0f} MB | {errors} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=COUNT, help="files of each kind")
    parser.add_argument("--kinds", nargs="*", help="these alone")
    parser.add_argument("--out", type=Path, default=RESULTS / "crafted_files.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = {
        **heading(
            "what becomes of files that were damaged or crafted",
            "benchmarks.robustness.crafted_files",
        ),
        "kinds": {},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, (data, reader) in kinds(folder).items():
            if arguments.kinds and kind not in arguments.kinds:
                continue
            record["kinds"][kind] = measure(kind, data, reader, arguments.count, folder)
            print(
                kind, {k: v for k, v in record["kinds"][kind].items() if k != "errors"}, flush=True
            )
            write_record(arguments.out, record, table(record))


if __name__ == "__main__":
    main()
