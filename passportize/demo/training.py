"""The demo's first steps: a passport and a plan, then the same training with and without."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from passportize.data.images import ImageData
from passportize.demo.recipe import ARCHITECTURE, History, accuracy, build_model, train
from passportize.demo.story import Story
from passportize.passport.passport import Passport
from passportize.report.plots import training_picture
from passportize.report.sections import Section
from passportize.surgery.planning import plan
from passportize.surgery.site_plan import Plan
from passportize.surgery.surgery import passportize
from passportize.training.embedding import embed_signature

__all__ = ["Trained", "make_passport", "train_both", "training_section"]

# What the demo claims of a single run; one test image of the digits is 0.3 points.
PUBLIC_GAP = 2.0
PRIVATE_GAP = 3.0


@dataclass(frozen=True)
class Trained:
    """Both models after training, and how it went.

    Attributes:
        plain, marked: The models.
        histories: Of plain and marked training.
        accuracies: Of plain model, public and private branch, in percent.
    """

    plain: nn.Module
    marked: nn.Module
    histories: tuple[History, History]
    accuracies: tuple[float, float, float]


def make_passport(
    story: Story, passport: Passport | None, paths: dict[str, str], data: ImageData, seed: int
) -> tuple[Passport, Plan]:
    """First step: the passport file, and the plan for the model."""
    story.step("A passport, and a plan of what it will be bound to")
    if passport is None:
        passport = Passport.generate("Acme Vision", contact="legal@acme.example")
    passport.save(paths["passport"], overwrite=True)
    planned = plan(build_model(seed, data.classes), example_inputs=data.train_images[:2])
    story.say(f"passport of {passport.owner}, one secret of 256 bits: {paths['passport']}")
    story.say(f"{ARCHITECTURE}: {planned.summary().partition(': ')[2]}")
    story.state(
        f"the model holds the owner's message ({passport.owner_message.frame_bits} bits) once or "
        "more",
        passport.message_fits(planned.bits),
    )
    return passport, planned


def train_both(
    story: Story, data: ImageData, passport: Passport, epochs: int, seed: int
) -> Trained:
    """Second step: the same recipe twice, with the same seed."""
    story.step(f"Training with passports next to without: {len(data.train_images):,} real images")
    plain = build_model(seed, data.classes)
    with story.training("without passports") as bar:
        first = train(plain, data, epochs=epochs, seed=seed, on_step=bar)
    marked = passportize(
        build_model(seed, data.classes), passport, example_inputs=data.train_images[:2]
    )
    story.say(f"put into the fresh weights at once: {embed_signature(marked)}")
    with story.training("with passports   ") as bar:
        second = train(marked, data, epochs=epochs, seed=seed, on_step=bar)
    test = data.test_images, data.test_labels
    reference = accuracy(plain, *test)
    public, private = (accuracy(marked, *test, which) for which in ("public", "private"))
    story.table(
        (f"{epochs} epochs", "accuracy", "private branch", "time"),
        [
            ("without passports", f"{reference:.2f} %", "", f"{first.seconds:.0f} s"),
            (
                "with passports",
                f"{public:.2f} %",
                f"{private:.2f} %",
                f"{second.seconds:.0f} s",
            ),
        ],
    )
    story.state(
        f"public accuracy is at most {PUBLIC_GAP:g} points below that without passports",
        public >= reference - PUBLIC_GAP,
    )
    story.state(
        f"private accuracy is at most {PRIVATE_GAP:g} points below public",
        private >= public - PRIVATE_GAP,
    )
    return Trained(plain, marked, (first, second), (reference, public, private))


def training_section(data: ImageData, trained: Trained) -> Section:
    """The part of the report about training."""
    first, second = trained.histories
    plain, public, private = trained.accuracies
    return Section(
        "Training with and without passports",
        f"{ARCHITECTURE}, {len(first.public)} epochs of {len(data.train_images):,} images, the "
        "same seed and settings. The public branch is what is released.",
        ("", "Accuracy", "Private branch", "Seconds", "Milliseconds a step"),
        [
            ("without", f"{plain:.2f} %", "", f"{first.seconds:.1f}", _milli(first)),
            (
                "with passports",
                f"{public:.2f} %",
                f"{private:.2f} %",
                f"{second.seconds:.1f}",
                _milli(second),
            ),
        ],
        training_picture(
            {
                "without passports": first.public,
                "public branch": second.public,
                "private branch": second.private,
                "sign loss": second.sign,
            }
        ),
        "Mean losses of every epoch",
    )


def _milli(history: History) -> str:
    return f"{1000 * history.step_seconds:.1f}"
