"""Removal attacks erase what they are known to erase, and not our marks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from passportize.attacks import prune_weights, quantise_weights, run_attack
from passportize.attacks.fine_tune import find_head
from passportize.errors import InvalidArgument
from passportize.schemes import Release
from tests.support.bench import BenchNet, attacked, batches, means, released

OURS, PUBLISHED = ("keyed", "signature"), ("deepipr", "paper", "uchida")


def unchanged(release: Release, name: str) -> None:
    """A disguise changes no output."""
    outcome = run_attack(name, release.model, means(release))
    inputs = batches("test")[0][0]
    with torch.no_grad():
        before, after = release.model(inputs), outcome.model(inputs)
    assert torch.allclose(before, after, atol=1e-3 * float(before.abs().max()))


@pytest.mark.parametrize("scheme", [*OURS, *PUBLISHED])
def test_sign_flips_and_permutations_tell_the_schemes_apart(scheme: str) -> None:
    for name in ("sign-flip", "permutation"):
        if (name, scheme) == ("sign-flip", "uchida"):
            continue  # whose layer is read by its columns: what was flipped before it decides
        rating = attacked(name, scheme)
        assert abs(rating.before - rating.after) < 0.5
        assert rating.succeeded is (scheme in PUBLISHED), (name, rating)
        if scheme in PUBLISHED:
            assert rating.owner.bit_accuracy is not None and rating.owner.bit_accuracy < 0.65
    unchanged(released(scheme), "disguise")


@pytest.mark.parametrize("scheme", [*OURS, "uchida"])
def test_other_layers_hide_what_wants_the_released_shapes(scheme: str) -> None:
    rating = attacked("cut-layers", scheme)
    assert abs(rating.before - rating.after) < 0.5
    assert rating.succeeded is (scheme == "uchida")
    unchanged(released(scheme), "cut-layers")


@pytest.mark.parametrize("form", ["FTLL", "FTAL", "RTLL", "RTAL"])
def test_fine_tuning_keeps_the_bits(form: str) -> None:
    for scheme in ("keyed", "paper"):
        rating = attacked("fine-tune", scheme, form=form)
        assert rating.owner.accepted and rating.owner.bit_accuracy == 1.0
        assert rating.after > 85 and not rating.succeeded
        assert rating.cost.steps == 40 and rating.cost.samples == 40 * 64


def test_last_layer_forms_touch_nothing_but_the_head() -> None:
    release = released("keyed")
    for form in ("FTLL", "RTLL"):
        after = run_attack("fine-tune", release.model, means(release, steps=3), form=form).model
        changed = {
            name
            for name, value in release.model.state_dict().items()
            if not torch.equal(value, after.state_dict()[name])
        }
        assert changed == {"fc.weight", "fc.bias"}
    name, head = find_head(release.copy(), batches("test")[0][0])
    assert name == "fc" and isinstance(head, nn.Linear)


def test_a_new_head_has_as_many_classes_as_the_new_data() -> None:
    release = released("keyed")
    data = [(inputs, targets + 5) for inputs, targets in batches("train")[:3]]
    options = {"form": "RTAL", "classes": 15}
    outcome = run_attack("fine-tune", release.model, means(release, data=data, steps=2), **options)
    assert outcome.model.fc.out_features == 15 and release.model.fc.out_features == 10
    assert release.verify(outcome.model).accepted


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("prune", {"share": 0.5}),
        ("prune", {"share": 0.5, "scope": "layer"}),
        ("quantise", {"bits": 8}),
        ("quantise", {"bits": 4}),
        ("noise", {"size": 0.2}),
        ("spectral", {}),
        ("projection", {}),
        ("projection", {"shrink": 1e-3}),
        ("drown", {}),
        ("overwrite", {}),
    ],
)
def test_our_marks_stay(name: str, options: dict) -> None:
    rating = attacked(name, "keyed", **options)
    assert rating.owner.accepted is True and not rating.succeeded
    if name == "overwrite":
        # It is a mark of its own on the thief's copy, and the owner's is in there too.
        assert rating.forged is not None and rating.forged.accepted


def test_spectral_turns_over_what_the_rows_share() -> None:
    rating = attacked("spectral", "paper")
    # Two of the three layers have rows enough for the attack.
    assert rating.owner.accepted is False and rating.succeeded
    assert rating.owner.bit_accuracy is not None and rating.owner.bit_accuracy < 0.8


def test_overwriting_weakens_a_regulariser_scheme() -> None:
    rating = attacked("overwrite", "uchida", {"steps": 100, "learning_rate": 0.1})
    assert rating.owner.bit_accuracy is not None and rating.owner.bit_accuracy < 0.9
    assert rating.forged is not None and rating.forged.bit_accuracy == 1.0
    assert rating.after > rating.before - 3


def test_distillation_removes_every_mark() -> None:
    """Named in the threat model: nothing that lies in weights follows into new ones."""
    has = {"data": batches("train"), "steps": 70, "learning_rate": 0.1}
    for scheme in ("keyed", "uchida"):
        rating = attacked("distil", scheme, has)
        assert rating.after > 90 and rating.succeeded
        assert rating.owner.strength < 20


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_pruning_takes_the_smallest_and_as_many_as_it_says(share: float, scope: str) -> None:
    torch.manual_seed(0)
    model = BenchNet()
    names = ("conv1", "conv2", "conv3", "fc")
    before = {name: model.get_parameter(f"{name}.weight").detach().clone() for name in names}
    prune_weights(model, share, scope)
    after = {name: model.get_parameter(f"{name}.weight") for name in names}
    gone = {name: after[name] == 0 for name in names}
    parts = [[name] for name in names] if scope == "layer" else [list(names)]
    for part in parts:
        mask = torch.cat([gone[name].flatten() for name in part])
        sizes = torch.cat([before[name].abs().flatten() for name in part])
        assert int(mask.sum()) == round(share * len(mask))
        if 0 < share < 1:
            assert sizes[mask].max() <= sizes[~mask].min()
    assert all(torch.equal(after[name][~gone[name]], before[name][~gone[name]]) for name in names)


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(4, 6, 3), nn.ConvTranspose2d(4, 6, 3), nn.Linear(4, 6)]
)
def test_rounding_has_one_scale_for_each_output(layer: nn.Module) -> None:
    model = nn.Sequential(layer)
    before = layer.weight.detach().clone()
    channel = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    quantise_weights(model, 4)
    for old, new in zip(before.unbind(channel), layer.weight.detach().unbind(channel), strict=True):
        step = old.abs().max() / 7
        assert len(torch.unique((new / step).round())) <= 15
        assert torch.allclose(new / step, (new / step).round(), atol=1e-4)
        assert float((old - new).abs().max()) <= float(step) / 2 + 1e-6


def test_weights_that_are_computed_are_refused() -> None:
    model = BenchNet()
    nn.utils.parametrizations.weight_norm(model.conv1)
    for name in ("prune", "quantise", "noise"):
        with pytest.raises(InvalidArgument, match=r"conv1.*computed from other parameters"):
            run_attack(name, model)
