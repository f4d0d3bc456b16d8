"""The six steps of the demo."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from passportize.audit import is_clean
from passportize.checkpoint import load_weights, save_weights
from passportize.claim import Claim
from passportize.data.image_data import ImageData, batches
from passportize.demo_recipe import ARCHITECTURE, History, accuracy, build_model, train
from passportize.demo_story import Story
from passportize.passport import Passport
from passportize.planning import Plan, plan
from passportize.report_plots import training_picture
from passportize.report_sections import Section, Strangers
from passportize.strangers import draw_strangers, strangers_accuracies, strangers_strengths
from passportize.surgery import passportize, unpassportize
from passportize.training import branch
from passportize.verdict import Verdict
from passportize.verification import verify

__all__ = [
    "Trained",
    "commit",
    "make_passport",
    "prove",
    "strip",
    "train_both",
    "training_section",
    "try_strangers",
]

# What the demo claims of a single run; one test image of the digits is 0.3 points.
PUBLIC_GAP = 2.0
PRIVATE_GAP = 3.0
STRENGTH = 500.0
NEAR_CHANCE = 2.5
"""Mean private accuracy under strangers' keys, in multiples of chance."""


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
    story.claim(
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
    story.claim(
        f"public accuracy is at most {PUBLIC_GAP:g} points below that without passports",
        public >= reference - PUBLIC_GAP,
    )
    story.claim(
        f"private accuracy is at most {PRIVATE_GAP:g} points below public",
        private >= public - PRIVATE_GAP,
    )
    return Trained(plain, marked, (first, second), (reference, public, private))


def commit(story: Story, passport: Passport, claim: Claim, paths: dict[str, str]) -> None:
    """Third step: what the owner publishes before release."""
    story.step("The claim, which the owner keeps and commits to before release")
    story.say(f"claim file:  {paths['claim']} (no secret in it)")
    story.say(f"publish:     claim {claim.digest()}")
    story.say(f"             passport {passport.commitment()}")


def strip(
    story: Story, model: nn.Module, data: ImageData, seed: int, paths: dict[str, str]
) -> None:
    """Fourth step: the plain model, and that nothing of passportize is left."""
    story.step("Stripped to the plain timm model that is released")
    images = data.test_images
    with torch.no_grad(), branch(model.eval(), "public"):
        before = model(images)
    unpassportize(model)
    with torch.no_grad():
        after = model(images)
    save_weights(paths["weights"], model.state_dict())
    fresh = build_model(seed + 1, data.classes)
    fresh.load_state_dict(load_weights(paths["weights"]), strict=True)
    with torch.no_grad():
        loaded = fresh.eval()(images)
    story.say(f"released weights: {paths['weights']}, loaded strictly by timm.create_model")
    story.claim("its output is that of the public branch, bit for bit", _same(before, after))
    story.claim("so is that of a timm model that loaded the file", _same(before, loaded))
    story.claim(
        "no class, key, buffer or hook of passportize is left",
        bool(is_clean(model)) and _alike(model, fresh),
    )


def _same(one: Tensor, other: Tensor) -> bool:
    return bool(torch.equal(one, other))


def _alike(model: nn.Module, plain: nn.Module) -> bool:
    """Whether a model has the modules, keys and hooks of one that was never touched."""

    def structure(root: nn.Module) -> list[object]:
        return [
            (name, type(module), sorted(vars(module)), len(module._forward_hooks))
            for name, module in root.named_modules()
        ]

    return structure(model) == structure(plain) and list(model.state_dict()) == list(
        plain.state_dict()
    )


def prove(
    story: Story, passport: Passport, claim: Claim, data: ImageData, paths: dict[str, str]
) -> tuple[Verdict, Verdict]:
    """Fifth step: verdicts on a stolen copy, as it is and fine-tuned by the thief."""
    story.step("A copy turns up: passport and claim against its weights")
    shell = build_model(0, data.classes)
    test = list(batches(data.test_images, data.test_labels))
    verdict = verify(paths["weights"], passport, claim, test, model=shell)
    message = verdict.message
    shown = (message.owner, message.contact, message.date) if message is not None else ()
    story.say(f"signature:   {verdict.matched} of {verdict.total} bits match")
    story.say(f"strength:    {verdict.strength:.0f} bits, p = {verdict.p_value}")
    story.say(f"message:     {', '.join(shown) or 'not readable'} (read from the weights)")
    story.say(f"accuracy:    {verdict.private_accuracy:.2f} % of the private branch, put back")
    story.claim(
        f"accepted: all {verdict.total} bits, more than {STRENGTH:g} bits of strength",
        verdict.accepted is True
        and verdict.matched == verdict.total
        and verdict.strength > STRENGTH,
    )
    story.claim("the message is the owner's", message == passport.owner_message)
    story.claim("the private branch passes its test of accuracy", verdict.fidelity is True)

    stolen = build_model(0, data.classes)
    stolen.load_state_dict(load_weights(paths["weights"]))
    with story.training("the thief fine-tunes") as bar:
        train(stolen, data, epochs=2, lr=0.01, seed=1, on_step=bar)
    tuned = verify(stolen, passport, claim)
    story.claim(
        f"accepted after the thief's fine-tuning: {tuned.matched} of {tuned.total} bits",
        tuned.accepted is True,
    )
    return verdict, tuned


def try_strangers(
    story: Story,
    claim: Claim,
    data: ImageData,
    paths: dict[str, str],
    counts: tuple[int, int],
) -> tuple[Strangers, Verdict]:
    """Sixth step: other keys on the same weights."""
    story.step("Strangers try the same")
    weights = load_weights(paths["weights"])
    model = build_model(0, data.classes)
    model.load_state_dict(weights)
    first = draw_strangers(1)[0]
    refused = verify(model, first, example_inputs=data.train_images[:2])
    story.claim(
        f"one stranger's key is refused: {refused.matched} of {refused.total} bits, "
        f"{refused.strength:.1f} bits of strength",
        refused.accepted is False,
    )
    some, many = draw_strangers(counts[0]), draw_strangers(counts[1])
    test = list(batches(data.test_images[:2000], data.test_labels[:2000]))
    unlabelled = list(batches(data.train_images[:512], data.train_labels[:512]))
    chance = 100.0 / data.classes
    with story.counting("private branches of strangers") as bar:
        total = 2 * len(some)
        given = strangers_accuracies(model, claim, some, test, on_key=lambda done: bar(done, total))
        fitted = strangers_accuracies(
            model,
            claim,
            some,
            test,
            fit_on=unlabelled,
            on_key=lambda done: bar(len(some) + done, total),
        )
    for text, values in (
        ("with the owner's claim", given),
        ("with statistics fitted to each key", fitted),
    ):
        mean = sum(values) / len(values)
        story.claim(
            f"private accuracy of {len(values)} strangers {text} is near chance: "
            f"{mean:.1f} % in the mean, {max(values):.1f} % at most",
            mean <= NEAR_CHANCE * chance,
        )
    with story.counting("signatures of strangers") as bar:
        strengths = strangers_strengths(
            weights, claim, many, on_key=lambda done: bar(done, len(many))
        )
    story.claim(
        f"none of {len(strengths):,} strangers is accepted: {max(strengths):.1f} bits at most, "
        f"{refused.accept_strength:g} are needed",
        max(strengths) < refused.accept_strength,
    )
    ways = {
        f"{len(some)} strangers,\nowner's statistics": given,
        f"{len(some)} strangers,\nstatistics of their own": fitted,
    }
    return Strangers(strengths, ways, chance), refused


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
