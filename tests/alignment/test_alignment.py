from __future__ import annotations

import copy
import functools
import json
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import passportize as pp
from passportize.alignment.alignment import align
from passportize.alignment.held_out import (
    FEW_ENTRIES,
    HeldOut,
    correlations,
    drawn_columns,
    fitting_entries,
)
from passportize.alignment.similarity import measure_similarity
from passportize.alignment.tied_channels import find_tied_channels
from passportize.attacks.neuron_scale import scale_neurons
from passportize.attacks.permutation import permute_channels
from passportize.errors import InvalidArgument
from passportize.release.claim_file import write_claim
from passportize.report.page import render_report
from passportize.thresholds import LINK_LIKENESS, LINK_P_VALUE
from tests.support.small_protected import PASSPORT, TinyNet, group_norm, images, loader, protected


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def example() -> torch.Tensor:
    return images("test")[0][:4]


def disguised(model: nn.Module, seed: int = 0) -> nn.Module:
    """A copy with all channels permuted, rescaled over four decades, and half of them mirrored."""
    thief = copy.deepcopy(model)
    assert permute_channels(thief, seeded(seed), example_inputs=example())
    assert scale_neurons(thief, seeded(seed), decades=2, flip=0.5, example_inputs=example())
    return thief


def fine_tuned(model: nn.Module, epochs: int = 1, rate: float = 0.01) -> nn.Module:
    x, y = images("train")
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=seeded(9)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return model.eval()


@functools.cache
def stranger(seed: int, epochs: int) -> nn.Module:
    """Another model of the same architecture, trained on the same data."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = TinyNet()
    return fine_tuned(model, epochs, 0.1) if epochs else model.eval()


def linked(suspect: nn.Module, preset: str = "keyed", norm=nn.BatchNorm2d, **options):
    released = protected(preset, norm)
    return pp.verify(
        suspect,
        PASSPORT,
        released.claim,
        released=released.plain.state_dict(),
        example_inputs=example(),
        **options,
    )


# --- undoing a disguise --------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["keyed", "signature", "paper"])
def test_a_disguised_copy_is_accepted_through_two_links(preset):
    released = protected(preset)
    thief = disguised(released.plain)
    with torch.no_grad():
        assert torch.allclose(thief(images("test")[0]), released.public, atol=1e-3)
    plain = pp.verify(thief, PASSPORT, released.claim)
    assert plain.accepted is False
    assert plain.links is None
    verdict = linked(thief, preset)
    assert verdict.accepted is True
    assert (verdict.matched, verdict.total) == (plain.matched, plain.total)
    links = verdict.links
    assert links.released_matched == links.released_total
    assert links.aligned_matched == links.entries_matched >= 0.95 * links.aligned_total
    assert links.aligned_total == links.released_total
    assert links.similarity.likeness > 0.95
    assert links.similarity.p_value == 1 / (links.similarity.matchings + 1)
    assert links.moved > 0.9 * links.channels
    assert "link 2" in str(verdict)
    assert json.loads(json.dumps(verdict.to_dict()))["links"]["accepted"] is True


def test_alignment_gives_the_released_weights_back():
    released = protected("keyed")
    thief = disguised(released.plain, 3)
    own = released.plain.state_dict()
    before = copy.deepcopy(thief.state_dict())
    found = align(own, thief.state_dict(), find_tied_channels(thief, example()))
    for name, tensor in own.items():
        if tensor.dim() > 1:
            assert torch.allclose(found.tensors[name], tensor, rtol=1e-4, atol=1e-6), name
    assert all(torch.equal(before[name], value) for name, value in thief.state_dict().items())


def test_fine_tuned_noised_and_pruned_after_the_disguise():
    released = protected("keyed")
    thief = disguised(fine_tuned(released.copy(), rate=0.01), 1)
    with torch.no_grad():
        for parameter in thief.parameters():
            if parameter.dim() > 1:
                spread = parameter.abs() * torch.randn(parameter.shape, generator=seeded(2))
                parameter += 0.1 * spread
                rows = parameter.flatten(1)
                rows[rows.abs() < rows.abs().quantile(0.2, dim=1, keepdim=True)] = 0
    verdict = linked(thief)
    assert verdict.accepted is True
    assert verdict.links.aligned_matched > 0.9 * verdict.links.aligned_total


def test_groups_of_a_group_norm_and_channels_within_them_come_back():
    released = protected("keyed", group_norm)
    verdict = linked(disguised(released.plain), norm=group_norm)
    assert verdict.accepted is True
    links = verdict.links
    assert links.aligned_matched == links.entries_matched >= 0.95 * links.aligned_total


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "convnext_atto"])
def test_timm_models_come_back_exactly(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=7).eval()
        for norm in model.modules():
            if getattr(norm, "running_var", None) is not None:
                norm.running_var.uniform_(0.5, 2.0)
                norm.running_mean.normal_()
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.normal_(norm.bias)
    thief = copy.deepcopy(model)
    assert permute_channels(thief, seeded())
    assert scale_neurons(thief, seeded(), decades=1, flip=0.5)
    own = model.state_dict()
    found = align(own, thief.state_dict(), find_tied_channels(thief))
    for weight, tensor in own.items():
        if tensor.dim() > 1:
            assert torch.allclose(found.tensors[weight], tensor, rtol=1e-3, atol=1e-4), weight


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("epochs", [0, 3])
def test_unrelated_models_are_refused(seed, epochs):
    verdict = linked(copy.deepcopy(stranger(seed, epochs)))
    assert verdict.accepted is False
    assert verdict.links.accepted is False
    assert verdict.links.similarity.likeness < 0.6 * LINK_LIKENESS
    assert "link 2" in verdict.reason


def test_p_values_of_strangers_are_spread_out():
    """Weights that know nothing of each other: the p-value is uniform, or larger."""
    values = []
    for seed in range(40):
        with torch.random.fork_rng():
            torch.manual_seed(1000 + seed)
            own, other = TinyNet(), TinyNet()
        tied = find_tied_channels(own, example())
        found = align(own.state_dict(), other.state_dict(), tied)
        values.append(
            measure_similarity(own.state_dict(), found.tensors, tied, matchings=199).p_value
        )
    assert min(values) >= 1 / 200
    assert sum(value <= 0.1 for value in values) <= 11  # 4 expected; more than 11: p = 0.0005
    assert 0.3 < sum(values) / len(values) < 0.7


def test_released_weights_without_a_signature_are_refused(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = pp.passportize(TinyNet(), PASSPORT, config=pp.PassportConfig.signature())
    claim = pp.save_claim(model, tmp_path / "claim.safetensors")
    plain = pp.unpassportize(model)
    verdict = pp.verify(disguised(plain), PASSPORT, claim, released=plain, example_inputs=example())
    assert verdict.accepted is False
    assert verdict.links.accepted is False
    assert verdict.links.similarity is None
    assert "link 1" in verdict.reason


def test_other_weights_than_the_claim_names_are_not_taken():
    released = protected("keyed")
    with pytest.raises(InvalidArgument, match="digest"):
        pp.verify(stranger(1, 0), PASSPORT, released.claim, released=stranger(1, 0).state_dict())
    with pytest.raises(InvalidArgument, match="needs the claim"):
        pp.verify(stranger(1, 0), PASSPORT, released=released.plain)
    with pytest.raises(InvalidArgument, match="model="):
        pp.verify(stranger(1, 0).state_dict(), PASSPORT, released.claim, released=released.plain)


def test_links_are_not_looked_for_where_the_signature_reads():
    released = protected("keyed")
    verdict = linked(released.copy())
    assert verdict.accepted is True
    assert verdict.links is None


# --- parts ---------------------------------------------------------------------------------------


def test_the_fit_looks_at_a_quarter_only():
    """Whatever stands in the other entries, the alignment is the same."""
    released = protected("keyed").plain
    thief = disguised(released, 7)
    tied = find_tied_channels(released, example())
    own, other = released.state_dict(), thief.state_dict()
    fitted = fitting_entries(own["conv3.weight"].shape)
    assert 0.2 < fitted.double().mean() < 0.3
    first = align(own, other, tied)
    changed = dict(own)
    noise = torch.randn(fitted.shape, generator=seeded())
    changed["conv3.weight"] = torch.where(fitted, own["conv3.weight"], noise)
    second = align(changed, other, tied)
    rows = [
        nn.functional.normalize(found.tensors["conv3.weight"].flatten(1))
        for found in (first, second)
    ]
    assert torch.allclose(rows[0], rows[1], atol=1e-6)
    before = measure_similarity(own, first.tensors, tied, 199)
    after = measure_similarity(changed, second.tensors, tied, 199)
    assert after.likeness < before.likeness - 0.5


def test_correlations_of_a_part():
    own, other = torch.randn(3, 8, generator=seeded()), torch.randn(4, 8, generator=seeded(1))
    chosen = torch.rand(3, 8, generator=seeded(2)) < 0.5
    found, entries = correlations(own, other, chosen)
    for i in range(3):
        for j in range(4):
            a, b = own[i][chosen[i]], other[j][chosen[i]]
            assert found[i, j] == pytest.approx(float(torch.cosine_similarity(a, b, 0)), abs=1e-5)
    assert entries.flatten().tolist() == chosen.sum(1).tolist()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_entries_that_are_looked_at_first_do_not_decide_alone(share):
    """Which they are anybody can know: a thief puts those of a neighbour into each row."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        released = nn.Sequential(nn.Linear(1024, 48), nn.ReLU(), nn.Linear(48, 4))
        example = torch.randn(2, 1024)
    thief = copy.deepcopy(released)
    tied = find_tied_channels(released, example)
    own = released.state_dict()
    held_out = HeldOut(tied, {name: tensor.shape for name, tensor in own.items()}, ["0.weight"])
    looked_at = held_out.fitted("0.weight")
    columns = drawn_columns(looked_at)[:FEW_ENTRIES]
    neighbours = torch.arange(48).view(-1, 2).flip(1).flatten()
    with torch.no_grad():
        weight = thief[0].weight
        mixed = weight[neighbours][:, columns]
        weight[:, columns] = share * mixed + (1 - share) * weight[:, columns]
    # Seen through these alone every row is its neighbour, and that is obvious.
    found, entries = correlations(
        own["0.weight"][:, columns], thief[0].weight.detach()[:, columns], looked_at[:, columns]
    )
    leads = (-0.5 * entries * torch.log1p(-found.square().clamp_max(1 - 1e-6))).topk(2).values
    assert torch.equal(found.argmax(1), neighbours if share else torch.arange(48))
    assert float((leads[:, 0] - leads[:, 1]).min()) > 8
    order = torch.randperm(48, generator=seeded(1))
    with torch.no_grad():
        thief[0].weight.copy_(thief[0].weight[order])
        thief[0].bias.copy_(thief[0].bias[order])
        thief[2].weight.copy_(thief[2].weight[:, order])
    aligned = align(own, thief.state_dict(), tied, held_out).tensors
    torch.testing.assert_close(aligned["2.weight"], own["2.weight"], rtol=0.1, atol=1e-6)


def test_thresholds_can_be_met():
    from passportize.alignment.similarity import MATCHINGS

    assert 1 / (MATCHINGS + 1) <= LINK_P_VALUE
    assert 0 < LINK_LIKENESS < 1


def test_report_and_command_line(tmp_path: Path):
    pytest.importorskip("typer")
    from typer.testing import CliRunner

    from passportize.cli.application import application

    released = protected("keyed")
    write_claim(released.claim, tmp_path / "a.claim.safetensors")
    PASSPORT.save(tmp_path / "a.passport")
    torch.save(released.plain.state_dict(), tmp_path / "released.pth")
    torch.save(disguised(released.plain).state_dict(), tmp_path / "suspect.pth")
    common = [
        "verify", str(tmp_path / "suspect.pth"), "--passport", str(tmp_path / "a.passport"),
        "--claim", str(tmp_path / "a.claim.safetensors"), "--input-size", "1,28,28",
    ]  # fmt: skip
    run = CliRunner().invoke
    alone = run(application(), [*common, "--released", str(tmp_path / "released.pth")])
    assert alone.exit_code == 2
    given = [
        *common, "--released", str(tmp_path / "released.pth"), "--model",
        "tests.support.small_protected:TinyNet", "--report", str(tmp_path / "r.html"),
    ]  # fmt: skip
    result = run(application(), given)
    assert result.exit_code == 0, result.output
    assert "Through the released weights" in (tmp_path / "r.html").read_text()
    assert run(application(), common).exit_code == 1
    verdict = linked(disguised(released.plain), loader=loader())
    assert verdict.fidelity is None
    assert "released weights -&gt; suspect" in render_report(verdict)
