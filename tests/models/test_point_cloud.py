"""Point-cloud models as their authors write them: anchors, round trip, joint training, strength."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binom

import passportize as pp
from passportize.layers.model import passport_layers, switch_of
from passportize.signature.site import Role
from tests.support.point_cloud_models import POINT_CLOUD_MODELS, Case
from tests.support.round_trip import assert_failure_leaves_no_trace, assert_round_trip

PASSPORT = pp.Passport.generate(owner="Point Clouds", secret=bytes(range(32)), date="2026-01-01")
CASES = [pytest.param(case, id=name) for name, case in POINT_CLOUD_MODELS.items()]
# Their few norms show one trap each; they carry too few bits for a verdict.
TOO_SMALL = {"plain_list", "caching", "idle_norms"}
STRONG = [
    pytest.param(case, id=name)
    for name, case in POINT_CLOUD_MODELS.items()
    if name not in TOO_SMALL
]


def bits_lost_to_narrow_rows(case: Case, model: torch.nn.Module) -> set[str]:
    """Norms behind a weight with so few inputs (x, y, z) that it can carry no bits."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {norm for norm, (first, *_) in case.anchors.items() if parameters[first][0].numel() < 8}


@pytest.mark.parametrize("case", CASES)
def test_every_norm_is_bound_or_named(case):
    model = case.build()
    planned = pp.plan(model, example_inputs=case.inputs(0, 4))
    sites = {site.name: site for site in planned.sites}
    assert set(sites) == set(case.anchors) | case.unreached
    narrow = bits_lost_to_narrow_rows(case, model)
    for name, weights in case.anchors.items():
        site = sites[name]
        if name in narrow:
            assert site.role is Role.STATISTICS and "fewer than the 8" in site.reason
            continue
        assert site.role is Role.BOUND, site.reason
        assert site.anchor is not None and len(site.anchor.parts) == 1
        assert site.anchor.parts[0].weight in weights, (name, site.anchor)
        assert site.anchor.rule in ("upstream", "autograd")
    for name in case.unreached:
        assert sites[name].role is Role.UNREACHED and "does not run" in sites[name].reason


@pytest.mark.parametrize("preset", ["keyed", "paper", "signature"])
@pytest.mark.parametrize("case", CASES)
def test_round_trip(case, preset):
    config = getattr(pp.PassportConfig, preset)(passes=passes_of(case))
    layers = assert_round_trip(case.build(), PASSPORT, case.inputs(1, 6), config=config)
    if preset != "signature":
        assert len(layers) == len(case.anchors)


@pytest.mark.parametrize("name", ["dgcnn", "pct", "pyg_gin"])
def test_failed_surgery_leaves_no_trace(name, monkeypatch):
    case = POINT_CLOUD_MODELS[name]
    assert_failure_leaves_no_trace(
        case.build(), PASSPORT, monkeypatch, example_inputs=case.inputs(0, 4)
    )


@pytest.mark.parametrize("case", CASES)
def test_packed_batches_get_two_passes(case):
    model = case.build()
    pp.passportize(model, PASSPORT, example_inputs=case.inputs(0, 4))
    assert switch_of(model).config.passes == passes_of(case)


@pytest.mark.parametrize("case", STRONG)
def test_a_short_training_embeds_the_signature_and_trains_both_branches(case):
    torch.manual_seed(0)
    model = case.build()
    config = pp.PassportConfig.keyed(passes=passes_of(case), private_fraction=1.0)
    pp.passportize(model, PASSPORT, config=config, example_inputs=case.inputs(0, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for step in range(60):
        loss = pp.joint_loss(model, case.inputs(step, 16), case.labels(step, 16), scores(case))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        assert loss.private is not None
        losses.append((loss.public.item(), loss.private.item()))
    for side in (0, 1):
        first, last = (sum(pair[side] for pair in part) for part in (losses[:8], losses[-8:]))
        assert last < first
    bits = sum(layer.passport.site.bits for layer in passport_layers(model).values())
    matches = round(pp.signature_accuracy(model) * bits)
    assert -binom.logsf(matches - 1, bits, 0.5) / math.log(2) > 200


def passes_of(case: Case) -> str:
    """Packed nodes cannot be appended to a batch."""
    return "doubled" if case.batch_major else "separate"


def scores(case: Case):
    """Cross-entropy on the scores; log-probabilities are unchanged by another log-softmax."""
    return lambda output, labels: F.cross_entropy(case.logits(output), labels)


# --- traps -----------------------------------------------------------------------------------


def test_aliased_norms_are_one_site_and_run_the_private_branch_under_every_name():
    case = POINT_CLOUD_MODELS["dgcnn"]
    model = case.build()
    pp.passportize(model, PASSPORT, example_inputs=case.inputs(0, 4))
    assert model.bn1 is model.conv1[1]
    assert isinstance(model.bn2, pp.PassportLayer)
    site = model.bn2.passport.site
    assert (site.name, site.aliases) == ("bn2", ("conv2.1",))
    keys = model.state_dict().keys()
    assert "bn2.passport.running_mean" in keys and "conv2.1.passport.running_mean" in keys
    again = case.build(seed=1)
    pp.passportize(again, PASSPORT, example_inputs=case.inputs(0, 4))
    again.load_state_dict(model.state_dict())


def test_tied_weights_give_both_norms_the_same_anchor():
    case = POINT_CLOUD_MODELS["pct"]
    model = case.build()
    pp.passportize(model, PASSPORT, example_inputs=case.inputs(0, 4))
    assert model.sa1.q_conv.weight is model.sa1.k_conv.weight
    query, key = model.sa1.q_norm.passport, model.sa1.k_norm.passport
    assert query.weights.rows()[0].data_ptr() == key.weights.rows()[0].data_ptr()
    assert not torch.equal(query.secret.bits, key.secret.bits) or not torch.equal(
        query.secret.pairs[0], key.secret.pairs[0]
    )


def test_layers_in_a_plain_list_run_their_private_branch():
    case = POINT_CLOUD_MODELS["plain_list"]
    model = case.build().eval()
    inputs = case.inputs(0, 4)
    pp.passportize(model, PASSPORT, example_inputs=inputs)
    called = []
    for name, layer in passport_layers(model).items():
        layer.register_forward_hook(lambda *_, name=name: called.append(name))
    with pp.branch(model, "private"):
        private = model(*inputs)
    assert called == ["bn1", "bn2"]
    assert not torch.equal(private, model(*inputs))


def test_a_model_that_cannot_be_copied_after_a_forward_is_changed_in_place():
    case = POINT_CLOUD_MODELS["caching"]
    model = case.build()
    model(*case.inputs(0, 4))
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    cached = model.last_transform
    pp.passportize(model, PASSPORT, example_inputs=case.inputs(0, 4))
    assert model.last_transform is cached
    pp.unpassportize(model)


def test_random_sampling_leaves_the_random_state_alone():
    from tests.support.point_cloud_hierarchical import PointNet2

    case = POINT_CLOUD_MODELS["pointnet2"]
    model = PointNet2(5, random_start=True)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    pp.passportize(model, PASSPORT, example_inputs=case.inputs(0, 4))
    assert torch.equal(torch.rand(2), expected)


def test_packed_nodes_are_never_doubled_silently():
    case = POINT_CLOUD_MODELS["pyg_act_first"]
    model = case.build()
    pp.passportize(model, PASSPORT)
    loss = pp.joint_loss(model, case.inputs(0, 8), case.labels(0, 8), F.cross_entropy)
    assert loss.private_output.shape == loss.output.shape
    config = pp.PassportConfig.keyed(passes="doubled")
    model = pp.passportize(case.build(), PASSPORT, config=config)
    with pytest.raises(pp.errors.JointPassRefused, match="passes='separate'"):
        pp.joint_loss(model, case.inputs(0, 8), case.labels(0, 8), F.cross_entropy)


def test_user_anchors_override_what_was_found():
    case = POINT_CLOUD_MODELS["layernorm_transformer"]
    model = case.build()
    chosen = {"blocks.0.norm2": "pos_embed.2.weight"}
    planned = pp.plan(model, example_inputs=case.inputs(0, 4), anchors=chosen)
    site = next(site for site in planned.sites if site.name == "blocks.0.norm2")
    assert site.anchor.rule == "user" and site.anchor.parts[0].weight == "pos_embed.2.weight"
