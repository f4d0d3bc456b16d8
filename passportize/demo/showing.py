"""The demo: protect a small timm ResNet, train it on real images, strip it, prove whose it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from passportize.data.images import ImageData, digits_data
from passportize.demo.proof import prove, try_strangers
from passportize.demo.recipe import ARCHITECTURE
from passportize.demo.release import commit, strip
from passportize.demo.story import Story, quiet_console
from passportize.demo.training import make_passport, train_both, training_section
from passportize.errors import InvalidArgument
from passportize.passport.passport import Passport
from passportize.release.checkpoint import load_weights
from passportize.release.claim_file import save_claim
from passportize.report.page import write_report
from passportize.verification.strangers import read_claimed

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["DemoResult", "run_demo"]


@dataclass(frozen=True)
class DemoResult:
    """The numbers of one demo.

    Attributes:
        data: What the model was trained on.
        bits: Signature bits of the model.
        plain_accuracy: Of the same recipe without passports, in percent.
        public_accuracy, private_accuracy: Of the two branches, in percent.
        plain_seconds, passport_seconds: How long the two trainings took.
        verdict: On the stolen copy, as a dict.
        fine_tuned_matched: Bits that match after the thief's fine-tuning.
        stranger_strength: Of one stranger's key under :func:`passportize.verify`.
        strangers: How many strangers' signatures were tested.
        highest_strength: The highest that one of them reached.
        strangers_private: Private accuracy under strangers' keys, in percent.
        commitment: Of the passport.
        claim: Digest of the claim.
        files: What was written.
        statements: What the demo says of itself, and whether it held.
    """

    data: str
    bits: int
    plain_accuracy: float
    public_accuracy: float
    private_accuracy: float
    plain_seconds: float
    passport_seconds: float
    verdict: dict[str, Any]
    fine_tuned_matched: int
    stranger_strength: float
    strangers: int
    highest_strength: float
    strangers_private: list[float]
    commitment: str
    claim: str
    files: dict[str, str]
    statements: list[tuple[str, bool]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible form."""
        return asdict(self)


def run_demo(
    out: str | os.PathLike[str] = "passportize-demo",
    *,
    data: ImageData | None = None,
    epochs: int = 30,
    seed: int = 0,
    strangers: int = 20,
    signatures: int = 1000,
    console: Console | None = None,
    passport: Passport | None = None,
) -> DemoResult:
    """Run the demo from training to proof.

    Args:
        out: Folder for passport, claim, released weights and report; made if need be.
        data: What to train on, the digits of scikit-learn by default.
        epochs: Passes over the data for each of the two models.
        seed: Of initial weights and order of images. The passport's secret is always fresh.
        strangers: Keys whose private accuracy is measured.
        signatures: Keys whose signature is tested.
        console: Where the story is printed; nowhere by default.
        passport: Another passport than a fresh one, to reproduce a run.

    Raises:
        DemoFailed: The run did not show what it says; the report is there all the same.
        MissingExtra: timm, scikit-learn, rich, jinja2 or matplotlib is not installed.
        InvalidArgument: A number below 1, or the folder cannot be made.
    """
    if min(epochs, strangers, signatures) < 1:
        raise InvalidArgument("epochs, strangers and signatures must be 1 or more")
    story = Story(console or quiet_console(), steps=6)
    folder = _folder(out)
    data = data or digits_data()
    paths = {
        name: str(folder / file)
        for name, file in (
            ("passport", "acme.passport"),
            ("claim", "acme.claim.safetensors"),
            ("weights", "released.safetensors"),
            ("report", "report.html"),
        )
    }

    with _one_thread():
        passport, planned = make_passport(story, passport, paths, data, seed)
        trained = train_both(story, data, passport, epochs, seed)
        claim = save_claim(trained.marked, paths["claim"], overwrite=True)
        commit(story, passport, claim, paths)
        strip(story, trained.marked, data, seed, paths)
        verdict, tuned = prove(story, passport, claim, data, paths)
        others, refused = try_strangers(story, claim, data, paths, (strangers, signatures))
        reading = next(iter(read_claimed(load_weights(paths["weights"]), claim, [passport])))
    write_report(
        paths["report"],
        verdict,
        title=f"{ARCHITECTURE} on {data.name}",
        reading=reading,
        strangers=others,
        before=[training_section(data, trained)],
    )
    story.console.print()
    story.say(f"report: {paths['report']}")
    story.check()
    plain, public, private = trained.accuracies
    ways = list(others.accuracies.values())
    return DemoResult(
        data=data.name,
        bits=planned.bits,
        plain_accuracy=plain,
        public_accuracy=public,
        private_accuracy=private,
        plain_seconds=trained.histories[0].seconds,
        passport_seconds=trained.histories[1].seconds,
        verdict=verdict.to_dict(),
        fine_tuned_matched=tuned.matched,
        stranger_strength=refused.strength,
        strangers=len(others.strengths),
        highest_strength=max(others.strengths),
        strangers_private=list(ways[0]),
        commitment=passport.commitment(),
        claim=claim.digest(),
        files=paths,
        statements=story.statements,
    )


def _folder(out: str | os.PathLike[str]) -> Path:
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InvalidArgument(f"out={str(folder)!r}: {reason}; give another folder") from None
    return folder


@contextmanager
def _one_thread() -> Iterator[None]:
    """A second thread waits more than it works on so small a model, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
