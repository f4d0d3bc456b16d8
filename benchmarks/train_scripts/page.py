"""The page about ``train_scripts.py``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

Record = Mapping[str, str]
YES = "True"


def write_page(path: Path, rows: Sequence[Record], common: Sequence[str]) -> Path:
    """Write what was run, what came of it, and how to run it again."""
    path.write_text("\n".join(_lines(rows, common)) + "\n")
    return path


def _lines(rows: Sequence[Record], common: Sequence[str]) -> Iterator[str]:
    newest = {(row["script"], row["name"], row["passport"]): row for row in rows}
    repeated = [row for row in rows if row not in newest.values()]
    rows = sorted(newest.values(), key=_by_version)
    halves = [row for row in rows if row["name"].startswith("halves")]
    refused = [row for row in rows if "REFUSED:" in row["outcome"].upper()]
    trained = [row for row in rows if row not in halves and row not in refused]
    scripts = list(dict.fromkeys(row["script"] for row in rows))
    torches = sorted({row["torch"] for row in rows if row["torch"]})
    versions = "; ".join(f"{script} with timm {_timm(rows, script)}" for script in scripts)
    arguments = " ".join(word or '""' for word in common)
    yield "# timm's own train.py with a passport\n"
    yield (
        "Made by `python -m benchmarks.train_scripts.train_scripts --timm-source CLONE`; the rows, "
        "with every command line in full, are in `train_scripts.csv`. CPU, one thread for each "
        "process, "
        f"torch {', '.join(torches)}. Scripts, as they are in timm's history: {versions}. The data "
        "are 3 classes of 16 random pictures of 40 px, so this says that runs end and what is in "
        "their files, and nothing about accuracy.\n"
    )
    yield "```sh"
    yield "PYTHONPATH=VERSION/site python -m passportize.integrations.timm \\"
    yield "  --passport acme.passport --claim EXPERIMENT.claim.safetensors OWN \\"
    yield f"  VERSION/train.py {arguments} \\"
    yield "  --experiment EXPERIMENT [--no-prefetcher] ARGUMENTS"
    yield "```\n"
    yield (
        "`-m passportize.integrations.timm` is `passportize timm-train`. Two processes: `python -m "
        "torch.distributed.run --standalone --nproc-per-node 2 ddp_on_cpu.py passportize."
        "integrations.timm ...`; `benchmarks/common/ddp_on_cpu.py` drops the `device_ids=[cpu]` "
        "that torch refuses, and keeps the wrapped model a moment longer than the script does, "
        "because torch's gloo group can wait for itself at the end (with plain runs too).\n"
    )
    yield "## Runs\n"
    yield from _summary(trained)
    yield (
        "\n*Bits*: signature bits in the weights at the end, of all; *averaged*: in those of "
        "`--model-ema`. *Public = plain*: the stripped file loads strictly into a plain model of "
        "timm, and its output equals the public branch's bit for bit. *Verdict*: of `verify` on "
        "the stripped file with the claim of the launcher; 64 bits of strength are needed.\n"
    )
    yield (
        "| script | run | processes | own options | arguments | result | bits | averaged | "
        "public = plain | verdict | loss | s |"
    )
    yield "|---" * 12 + "|"
    for row in trained:
        cells = (
            row["script"],
            f"{row['name']}{'' if row['passport'] == YES else ', plain control'}",
            row["processes"],
            _code(row["own"]),
            "; then ".join(map(_code, row["arguments"].split("; then "))),
            row["outcome"],
            _bits(row, "right"),
            _bits(row, "right_ema"),
            _public(row),
            _verdict(row),
            f"{float(row['public_loss']):.4f}" if row["public_loss"] else "",
            row["seconds"],
        )
        yield f"| {' | '.join(cells)} |"
    yield "\n*Loss*: `train_public_loss` of the last epoch in `summary.csv`.\n"
    yield "## Other scripts of timm\n"
    yield (
        "The version's `validate.py` and `clean_checkpoint.py`, on the training checkpoint as it "
        'is where its `state_dict` is plain, else on the stripped file. The word "passport" is '
        "not in what is cleaned, or the row would say so.\n"
    )
    for row in trained:
        if row["tools"]:
            yield f"- {row['script']}, {row['name']}: {row['tools']}"
    yield "\n## Resumed or uninterrupted\n"
    yield (
        "Two epochs at once against one epoch and, in another process, `--resume` for the second. "
        "Compared are all tensors and numbers of live and averaged weights, private branch and "
        "optimizer in the last checkpoints. timm draws the order of the images from the number of "
        "the epoch where there are several processes, so there the two can be equal, without "
        "augmentation (`--no-aug`). With one process the order comes from a generator that is not "
        "in the checkpoint: a plain run that is resumed differs from an uninterrupted one too, "
        "and nothing can be learned from it.\n"
    )
    yield "| script | processes | arguments | with a passport | private | bits | plain control |"
    yield "|---" * 7 + "|"
    controls = {(row["script"], row["name"]): row for row in halves if row["passport"] != YES}
    for row in halves:
        if row["passport"] == YES:
            control = controls.get((row["script"], row["name"]))
            pair = (
                row["script"],
                row["processes"],
                _code(row["arguments"]),
                _difference(row),
                row["private"],
                _bits(row, "right"),
                _difference(control) if control else "not run",
            )
            yield f"| {' | '.join(pair)} |"
    yield from _repeated(repeated)
    yield "\n## Refused\n"
    yield "These end before the script starts and write nothing.\n"
    for row in refused:
        yield f"- {row['script']}, {_code(row['arguments'])}: {row['outcome']}"


def _by_version(row: Record) -> tuple[bool, list[int]]:
    """Tags by their numbers, main behind them."""
    tag = row["script"].removeprefix("v").split(".")
    return (True, []) if row["script"].startswith("main") else (False, [int(part) for part in tag])


def _repeated(rows: Sequence[Record]) -> Iterator[str]:
    if not rows:
        return
    yield "\n## Hung and repeated\n"
    yield (
        "Runs that went over their limit on a busy machine, with a passport and without. Where a "
        "debugger was at hand, a worker of the data loader waited in `os.fork`, in "
        "`PyOS_AfterFork_Child`, for a lock that one of gloo's threads had held at the fork. The "
        "tables have the repetition.\n"
    )
    for row in rows:
        control = "" if row["passport"] == YES else ", plain control"
        yield f"- {row['script']}, {row['name']}{control}: {row['outcome']}"


def _timm(rows: Sequence[Record], script: str) -> str:
    return ", ".join(sorted({row["timm"] for row in rows if row["script"] == script} - {""}))


def _summary(rows: Sequence[Record]) -> Iterator[str]:
    own = [row for row in rows if row["passport"] == YES]
    ended = [row for row in own if row["outcome"] == "ok"]
    averaged = [row for row in ended if row["right_ema"]]
    counts = (
        ("ran to their end", len(ended), len(own)),
        ("strict load, output bit-equal to the public branch's", _yes(ended, "public"), len(ended)),
        ("the same with averaged weights", _yes(averaged, "public_ema"), len(averaged)),
        (
            'without the word "passport" in stripped file and `args.yaml`',
            sum(row["trace"] == "False" for row in ended),
            len(ended),
        ),
        ("all signature bits in", sum(row["right"] == row["bits"] for row in ended), len(ended)),
        (
            "all bits in the averaged weights",
            sum(row["right_ema"] == row["bits"] for row in averaged),
            len(averaged),
        ),
        ("claim accepted on the stripped file", _yes(ended, "accepted"), len(ended)),
    )
    for title, part, whole in counts:
        yield f"- {title}: {part} of {whole}"


def _yes(rows: Sequence[Record], column: str) -> int:
    return sum(row[column] == YES for row in rows)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _bits(row: Record, column: str) -> str:
    return f"{row[column]} of {row['bits']}" if row[column] else ""


def _public(row: Record) -> str:
    if not row["public"]:
        return ""
    told = "yes" if row["public"] == YES else "NO"
    if row["public_ema"]:
        told += ", averaged: " + ("yes" if row["public_ema"] == YES else "NO")
        if row["moved_ema"] != YES:
            told += " (equal to the live ones)"
    return told if row["finite"] == YES else f"{told}; NOT FINITE"


def _verdict(row: Record) -> str:
    if not row["accepted"]:
        return ""
    return f"{'accepted' if row['accepted'] == YES else 'refused'}, {float(row['strength']):.1f}"


def _difference(row: Record) -> str:
    if row["outcome"] != "ok":
        return row["outcome"]
    if row["different"] == "0":
        return f"equal, all {row['compared']}"
    return f"{row['different']} of {row['compared']} differ"
