"""The demo's last steps: a copy turns up, and strangers try the same."""

from __future__ import annotations

from passportize.data.images import ImageData, batches
from passportize.demo.recipe import build_model, train
from passportize.demo.story import Story
from passportize.passport.passport import Passport
from passportize.release.checkpoint import load_weights
from passportize.release.claim import Claim
from passportize.report.sections import Strangers
from passportize.verification.strangers import (
    draw_strangers,
    strangers_accuracies,
    strangers_strengths,
)
from passportize.verification.verdict import Verdict
from passportize.verification.verification import verify

__all__ = ["prove", "try_strangers"]

# What the demo claims of a single run.
STRENGTH = 500.0
NEAR_CHANCE = 2.5
"""Mean private accuracy under strangers' keys, in multiples of chance."""


def prove(
    story: Story, passport: Passport, claim: Claim, data: ImageData, paths: dict[str, str]
) -> tuple[Verdict, Verdict]:
    """Fifth step: verdicts on a stolen copy, as it is and fine-tuned by the thief."""
    story.step("A copy turns up: passport and claim against its weights")
    shell = build_model(0, data.classes)
    test = list(batches(data.test_images, data.test_labels))
    verdict = verify(paths["weights"], passport, claim, test, model=shell)
    message = verdict.message
    shown = "not readable" if message is None else message.text
    story.say(f"signature:   {verdict.matched} of {verdict.total} bits match")
    story.say(f"strength:    {verdict.strength:.0f} bits, p = {verdict.p_value}")
    story.say(f"message:     {shown} (read from the weights)")
    story.say(f"accuracy:    {verdict.private_accuracy:.2f} % of the private branch, put back")
    story.state(
        f"accepted: all {verdict.total} bits, more than {STRENGTH:g} bits of strength",
        verdict.accepted is True
        and verdict.matched == verdict.total
        and verdict.strength > STRENGTH,
    )
    story.state("the message is the owner's", message == passport.owner_message)
    story.state("the private branch passes its test of accuracy", verdict.fidelity is True)

    stolen = build_model(0, data.classes)
    stolen.load_state_dict(load_weights(paths["weights"]))
    with story.training("the thief fine-tunes") as bar:
        train(stolen, data, epochs=2, lr=0.01, seed=1, on_step=bar)
    tuned = verify(stolen, passport, claim)
    story.state(
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
    story.state(
        f"one stranger's key is refused: {refused.matched} of {refused.total} bits, "
        f"{refused.strength:.1f} bits of strength",
        refused.accepted is False,
    )
    some, many = draw_strangers(counts[0]), draw_strangers(counts[1])
    test = list(batches(data.test_images[:2000], data.test_labels[:2000]))
    chance = 100.0 / data.classes
    with story.counting("private branches of strangers") as bar:
        found = strangers_accuracies(
            model, claim, some, test, on_key=lambda done: bar(done, len(some))
        )
    mean = sum(found) / len(found)
    story.state(
        f"private accuracy of {len(found)} strangers is near chance: {mean:.1f} % in the mean, "
        f"{max(found):.1f} % at most",
        mean <= NEAR_CHANCE * chance,
    )
    with story.counting("signatures of strangers") as bar:
        strengths = strangers_strengths(
            weights, claim, many, on_key=lambda done: bar(done, len(many))
        )
    story.state(
        f"none of {len(strengths):,} strangers is accepted: {max(strengths):.1f} bits at most, "
        f"{refused.accept_strength:g} are needed",
        max(strengths) < refused.accept_strength,
    )
    ways = {f"{len(some)} strangers": found}
    return Strangers(strengths, ways, chance), refused
