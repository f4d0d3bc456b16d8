"""Checks on what a run of timm's script has written; ``train_scripts.py`` starts them.

They are a command of their own, since each needs the timm of its run. The answer is JSON.

    python -m benchmarks.train_scripts.checks look CHECKPOINT CLAIM RELEASED OWN OPTIONS train.py
    python -m benchmarks.train_scripts.checks same CHECKPOINT CHECKPOINT
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import passportize as pp
from passportize.integrations.timm.options import LaunchOptions, parse_options
from passportize.integrations.timm.release import restore_checkpoint
from passportize.layers.model import passport_layers
from passportize.layers.private_keys import private_keys
from passportize.release.checkpoint import (
    load_weights,
    model_of_checkpoint,
    read_checkpoint,
)
from passportize.release.strip import averaged_key, strip_checkpoint
from passportize.training.loss import signature_accuracy

STATES = ("state_dict", "state_dict_ema", "optimizer", "task_state", "task_state_ema")


def look(checkpoint: Path, claim: Path, released: Path, options: LaunchOptions) -> dict[str, Any]:
    """Is there a plain model in the checkpoint, and is it the public branch bit for bit?

    Args:
        checkpoint: What the script wrote.
        claim: What the launcher wrote.
        released: Where the stripped weights go; the averaged ones beside them.
        options: The launcher's, as in the run.
    """
    content = read_checkpoint(checkpoint)
    answer: dict[str, Any] = {
        "timm": timm.__version__,
        "torch": torch.__version__,
        "plain_checkpoint": not private_keys(content["state_dict"]),
    }
    averaged = "state_dict_ema" in content
    for ema in (False, True) if averaged else (False,):
        suffix = "_ema" if ema else ""
        restored = restore_checkpoint(
            checkpoint, options.passport, ema=ema, config=options.config, where=options.where
        )
        bits = sum(layer.passport.site.bits for layer in passport_layers(restored).values())
        path = released.with_stem(f"{released.stem}{suffix}")
        strip_checkpoint(checkpoint, path, ema=ema, overwrite=True)
        plain = model_of_checkpoint(checkpoint)
        plain.load_state_dict(load_weights(path), strict=True)
        answer |= {
            "bits": bits,
            f"right{suffix}": round(signature_accuracy(restored) * bits),
            f"public{suffix}": _same_outputs(plain.eval(), restored),
            f"trace{suffix}": b"passport" in path.read_bytes(),
            f"finite{suffix}": all(
                bool(torch.isfinite(value).all()) for value in plain.state_dict().values()
            ),
        }
        if ema:
            live = load_weights(checkpoint)
            averages = load_weights(checkpoint, averaged_key(checkpoint))
            # Else the check on the averaged weights would be that on the live ones again.
            answer["moved_ema"] = any(
                not torch.equal(value, averages[name]) for name, value in live.items()
            )
        elif claim.exists():
            verdict = pp.verify(plain, options.passport, claim)
            answer |= {"accepted": verdict.accepted, "strength": _short(verdict.strength)}
    return answer


def _same_outputs(plain: nn.Module, restored: nn.Module) -> bool:
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    if type(plain).__name__ == "NaFlexVit":
        x = torch.nn.functional.interpolate(x, size=(96, 96))
    with torch.no_grad():
        left, right = plain(x), restored(x)
    return torch.equal(left, right) and bool(torch.isfinite(left).all())


def _short(strength: float) -> float:
    return round(strength, 1) if math.isfinite(strength) else 0.0


def same(left: Path, right: Path) -> dict[str, Any]:
    """Every tensor and number that the run goes on with, of two checkpoints."""
    contents = [read_checkpoint(path) for path in (left, right)]
    compared = [key for key in STATES if any(key in content for content in contents)]
    pairs = [dict(_leaves({key: content.get(key) for key in compared}, "")) for content in contents]
    names = list(dict.fromkeys([*pairs[0], *pairs[1]]))
    missing = object()
    different = [
        name
        for name in names
        if not _equal(pairs[0].get(name, missing), pairs[1].get(name, missing))
    ]
    tensors = sum(isinstance(value, Tensor) for value in pairs[0].values())
    return {
        "timm": timm.__version__,
        "torch": torch.__version__,
        "compared": len(names),
        "tensors": tensors,
        "private": sum(".passport." in name for name in names),
        "different": len(different),
        "first_different": different[0].strip(".") if different else "",
    }


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{place}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{place}.{index}")
    else:
        yield place, value


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    return type(left) is type(right) and bool(left == right)


def main(arguments: list[str]) -> None:
    if arguments[0] == "same":
        answer = same(Path(arguments[1]), Path(arguments[2]))
    else:
        checkpoint, claim, released = map(Path, arguments[1:4])
        answer = look(checkpoint, claim, released, parse_options(arguments[4:]))
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
