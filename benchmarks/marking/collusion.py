"""How many licensees who mix their copies are still found, and whether anybody else is named.

Question: of 100 licensees 2, 3, 5 or 10 make one model of their copies; how often is at least one
of them named, how many, and how many innocents, with 500, 1,500 and 5,000 bits, without the owner's
original and with it? Mixed are real copies that `mark_copy` made of one small network with 5,400
rows: averaged, each row from a copy drawn at random, each row as most or as fewest copies have it,
and where copies differ something in the middle. The rule was set before: named from 20 bits of
strength on, the 100 that are asked about paid for.

    python -m benchmarks.marking.collusion

Rows are added as they come; one that is there is not measured again.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import passportize as pp
from benchmarks.common.csv_rows import append_row, read_rows
from benchmarks.common.paths import RESULTS
from passportize.release.claim import claim_of

OUT = RESULTS / "marking_collusion.csv"
NAMES = tuple(f"licensee {number}" for number in range(100))
TRIALS = 4


def _at_random(stacked: Tensor, generator: torch.Generator) -> Tensor:
    chosen = torch.randint(len(stacked), (stacked.shape[1],), generator=generator)
    return stacked[chosen, torch.arange(stacked.shape[1])]


def _by_number(stacked: Tensor, most: bool) -> Tensor:
    """Each row as most, or as fewest, of the copies have it."""
    counts = torch.stack([(stacked == one).flatten(2).all(2).sum(0) for one in stacked])
    chosen = counts.argmax(0) if most else counts.argmin(0)
    return stacked[chosen, torch.arange(stacked.shape[1])]


def _middle(stacked: Tensor, generator: torch.Generator) -> Tensor:
    return (stacked.amax(0) + stacked.amin(0)) / 2


MIXTURES: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "averaged": lambda stacked, _: stacked.mean(0),
    "rows at random": _at_random,
    "as most have it": lambda stacked, _: _by_number(stacked, True),
    "as fewest have it": lambda stacked, _: _by_number(stacked, False),
    "the middle": _middle,
}


def release(bits: int) -> tuple[nn.Module, pp.Passport, pp.Claim]:
    """A network with 5,400 rows, 200 of them the owner's."""
    torch.manual_seed(0)
    model = nn.Sequential()
    for width, before in ((1800, 64), (1800, 1800), (1800, 1800)):
        # Groups keep the weights small.
        groups = 1 if before == 64 else 18
        model.append(nn.Conv1d(before, width, 1, groups=groups)).append(nn.BatchNorm1d(width))
    passport = pp.Passport.generate("Benchmark", date="2026-11-28", secret=bytes(range(32)))
    config = pp.PassportConfig.trained(bits=200, licence_bits=bits)
    example = torch.randn(4, 64, 3)
    pp.passportize(model.eval(), passport, config=config, example_inputs=example)
    pp.embed_signature(model, calibration=[torch.randn(64, 64, 3)])
    claim = claim_of(model)
    return pp.unpassportize(model), passport, claim


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--trials", type=int, default=TRIALS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    done = {(row["bits"], row["colluders"], row["mixture"]) for row in read_rows(arguments.out)}
    for bits in (500, 1500, 5000):
        model, passport, claim = release(bits)
        copies: dict[str, dict[str, Tensor]] = {}
        for many, how in itertools.product((2, 3, 5, 10), MIXTURES):
            if (str(bits), str(many), how) in done:
                continue
            row: dict[str, object] = {"bits": bits, "colluders": many, "mixture": how}
            found = {False: [0, 0, 0], True: [0, 0, 0]}
            for trial in range(arguments.trials):
                guilty = [NAMES[(7 * trial + number) % len(NAMES)] for number in range(many)]
                for name in guilty:
                    if name not in copies:
                        copied = copy.deepcopy(model)
                        pp.mark_copy(copied, passport.licensee(name), claim)
                        copies[name] = copied.state_dict()
                generator = torch.Generator().manual_seed(trial)
                suspect = {
                    key: MIXTURES[how](
                        torch.stack([copies[name][key] for name in guilty]), generator
                    )
                    if value.dim() > 1
                    else value
                    for key, value in model.state_dict().items()
                }
                for original in (False, True):
                    named = pp.identify(
                        suspect, passport, NAMES, claim, released=model if original else None
                    ).named
                    found[original][0] += bool(set(named) & set(guilty))
                    found[original][1] += len(set(named) & set(guilty))
                    found[original][2] += len(set(named) - set(guilty))
            for original, kind in ((False, "alone"), (True, "with_original")):
                row[f"trials_with_one_named_{kind}"] = found[original][0]
                row[f"named_{kind}"] = found[original][1]
                row[f"innocents_{kind}"] = found[original][2]
            row["trials"] = arguments.trials
            append_row(arguments.out, row)
            logging.info("%s", row)


if __name__ == "__main__":
    main()
