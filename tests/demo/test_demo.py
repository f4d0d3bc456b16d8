"""The demo, made short: it tells its story, checks its claims, and fails when one does not hold."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import passportize as pp
from passportize.cli.application import application
from passportize.data.images import ImageData, batches, digits_data
from passportize.demo.recipe import accuracy, build_model, train
from passportize.demo.showing import run_demo
from passportize.errors import DemoFailed, InvalidArgument
from passportize.release.checkpoint import load_weights
from passportize.verification.strangers import draw_strangers, read_claimed, strangers_accuracies

PASSPORT = pp.Passport.generate("Acme", date="2026-01-31", secret=bytes(range(32)))


@pytest.fixture(scope="module")
def digits():
    """All digits, in less pixels than the demo uses."""
    return digits_data(size=16)


@pytest.fixture(scope="module")
def short(tmp_path_factory, digits):
    """The result of a short demo, what it printed, and its folder."""
    out = tmp_path_factory.mktemp("demo")
    console = Console(file=io.StringIO(), width=200)
    result = run_demo(
        out,
        data=digits,
        epochs=16,
        strangers=4,
        signatures=60,
        console=console,
        passport=PASSPORT,
    )
    return result, console.file.getvalue(), out


def test_what_it_shows(short):
    result, _, _ = short
    assert result.verdict["matched"] == result.bits == 780
    assert result.verdict["strength"] == 778
    assert result.verdict["message"]["owner"] == "Acme"
    assert result.public_accuracy >= result.plain_accuracy - 2
    assert result.private_accuracy >= result.public_accuracy - 3
    assert result.highest_strength < 64
    assert max(result.strangers_private) < 40
    assert all(held for _, held in result.statements)
    json.dumps(result.to_dict(), allow_nan=False)


def test_what_it_prints(short):
    result, text, _ = short
    for number in range(1, 7):
        assert f"{number}/6" in text
    for shown in ("780 of 780 bits", "2^-778", result.claim, result.commitment, "report.html"):
        assert shown in text
    assert "FAILED" not in text and bytes(range(32)).hex() not in text


def test_what_it_writes(short, digits):
    result, _, out = short
    assert pp.Passport.load(out / "acme.passport") == PASSPORT
    claim = pp.load_claim(out / "acme.claim.safetensors")
    assert claim.digest() == result.claim
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "780 / 780" in page and page.count("<img") == 4
    weights = load_weights(out / "released.safetensors")
    model = build_model(3)
    model.load_state_dict(weights, strict=True)
    reached = accuracy(model, digits.test_images, digits.test_labels)
    assert reached == pytest.approx(result.public_accuracy)


def test_the_owner_alone_has_a_private_branch(short, digits):
    _, _, out = short
    claim = pp.load_claim(out / "acme.claim.safetensors")
    model = build_model(0)
    model.load_state_dict(load_weights(out / "released.safetensors"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    test = list(batches(digits.test_images, digits.test_labels))
    keys = [PASSPORT, *draw_strangers(1)]
    owner, stranger = strangers_accuracies(model, claim, keys, test)
    assert owner > 90 and stranger < 40
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    readings = list(read_claimed(model.state_dict(), claim, keys))
    assert readings[0].matched == 780 and 300 < readings[1].matched < 480


def test_a_claim_that_does_not_hold_is_an_error_and_the_report_is_there(tmp_path, digits):
    few = ImageData(
        "a few digits",
        digits.train_images[:128],
        digits.train_labels[:128],
        digits.test_images[:64],
        digits.test_labels[:64],
    )
    console = Console(file=io.StringIO(), width=200)
    with pytest.raises(DemoFailed, match="did not show"):
        run_demo(tmp_path, data=few, epochs=1, strangers=1, signatures=2, console=console)
    assert "FAILED" in console.file.getvalue()
    assert (tmp_path / "report.html").is_file()


def test_the_command_ends_with_2_if_a_claim_does_not_hold(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise DemoFailed("the demo did not show 1 of the 12 things that it claims: x")

    monkeypatch.setattr("passportize.demo.showing.run_demo", fail)
    result = CliRunner().invoke(application(), ["demo", "--out", str(tmp_path), "--json"])
    assert result.exit_code == 2 and json.loads(result.stdout)["error"] == "DemoFailed"


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"strangers": 0}, {"signatures": 0}])
def test_numbers_that_make_no_sense(tmp_path, digits, wrong):
    with pytest.raises(InvalidArgument):
        run_demo(tmp_path, data=digits, **wrong)


def test_a_folder_that_cannot_be_made(tmp_path, digits):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgument, match="folder"):
        run_demo(tmp_path / "file", data=digits)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_is_reproducible_and_leaves_the_random_state(digits, optimizer):
    few = ImageData("", digits.train_images[:128], digits.train_labels[:128], *[torch.empty(0)] * 2)
    state = torch.get_rng_state()
    histories = []
    for _ in range(2):
        model = build_model(5)
        steps: list[int] = []
        history = train(
            model,
            few,
            epochs=1,
            lr=0.01,
            optimizer=optimizer,
            on_step=lambda step, steps=steps: steps.append(step.number),
        )
        histories.append(history.public)
        assert steps == [1, 2] and history.finite and not model.training
    assert histories[0] == histories[1]
    assert torch.equal(state, torch.get_rng_state())


def test_recipe_refuses_what_makes_no_sense(digits):
    with pytest.raises(InvalidArgument, match="optimizer"):
        train(build_model(0), digits, optimizer="lion")
    with pytest.raises(InvalidArgument, match="nothing to do"):
        train(build_model(0), digits, batch=100000)
    with pytest.raises(InvalidArgument, match="size"):
        digits_data(size=0)
    with pytest.raises(InvalidArgument, match="count"):
        draw_strangers(0)
