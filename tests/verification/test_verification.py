from __future__ import annotations

import copy
import json
import math
from collections import OrderedDict

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import passportize as pp
from passportize.attacks.sign_flip import flip_channel_signs
from passportize.errors import (
    AlreadyPassportized,
    CheckpointError,
    InvalidArgument,
    WrappedModel,
    WrongPassport,
)
from passportize.layers.model import passport_layers
from passportize.release.checkpoint import save_weights
from passportize.release.claim_file import write_claim
from passportize.signature.evidence import LOOKS_PRICE
from passportize.signature.matching import match_names
from passportize.signature.model_key import ModelKey
from passportize.signature.null_model import log2_binomial_tail
from passportize.signature.reading import prepare_sites, read_signature
from passportize.thresholds import ACCEPT_STRENGTH, FIDELITY_GAP
from tests.support.small_protected import (
    PASSPORT,
    TinyNet,
    accuracy,
    group_norm,
    images,
    live,
    loader,
    protected,
    train,
)

NOISE = 2.0
"""Points by which an accuracy with measured statistics may differ from that of training."""

EVE = pp.Passport.generate("Eve", date="2026-02-01", secret=b"e" * 32)


def snapshot(model):
    """Everything that verify could leave behind."""
    return {
        "classes": [type(module) for module in model.modules()],
        "training": [module.training for module in model.modules()],
        "vars": [list(vars(module)) for module in model.modules()],
        "hooks": [
            (list(m._forward_hooks.values()), list(m._forward_pre_hooks.values()))
            for m in model.modules()
        ],
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "identity": [id(tensor) for tensor in (*model.parameters(), *model.buffers())],
        "grad": [parameter.requires_grad for parameter in model.parameters()],
        "random": torch.get_rng_state(),
    }


def unchanged(model, before):
    after = snapshot(model)
    states = before.pop("state"), after.pop("state")
    random = before.pop("random"), after.pop("random")
    assert before == after
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert torch.equal(*random)


# --- the owner's model ---------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["keyed", "paper", "signature"])
def test_the_owner_is_recognised(preset):
    released = protected(preset)
    model = released.copy().train()
    before = snapshot(model)
    verdict = pp.verify(model, PASSPORT, released.claim, iter(loader()))
    unchanged(model, before)
    assert verdict.accepted is True
    assert (verdict.matched, verdict.total) == (192, 192)
    assert verdict.log2_p == -192.0
    assert verdict.log2_alternatives == LOOKS_PRICE == 2.0
    assert verdict.strength == 190.0
    assert verdict.p_value == "2^-190"
    assert verdict.matched_by == "name"
    assert verdict.same_weights is True
    assert verdict.claim == released.claim.digest()
    assert verdict.message is not None and verdict.message.owner == "Acme"
    assert verdict.public_accuracy == pytest.approx(accuracy(released.public), abs=1e-9)
    if preset == "signature":
        assert verdict.private_accuracy is None and verdict.fidelity is None
    else:
        assert verdict.private_accuracy == pytest.approx(accuracy(released.private), abs=NOISE)
        assert verdict.fidelity is True


def test_the_private_branch_is_the_one_that_was_trained():
    """Rounding aside, the branch put back by verify computes what it did in training.

    All but the running statistics, which the judge measures: here those of training are put in.
    """
    from passportize.surgery.branches import branches_put_in
    from passportize.verification.fidelity import _fill

    for preset in ("keyed", "paper"):
        released = protected(preset)
        claim, model = released.claim, released.copy()
        trained = passport_layers(live(preset))
        marking = claim.marking
        with (
            torch.no_grad(),
            branches_put_in(
                model, marking.sites, PASSPORT, marking.config, marking.configs, claim.layout
            ),
        ):
            for index, site in enumerate(marking.sites):
                layer = model.get_submodule(site.name)
                _fill(layer, claim.of_site(index))
                for name in ("running_mean", "running_var"):
                    values = getattr(trained[site.name].passport, name)
                    getattr(layer.passport, name).copy_(values)
            with pp.branch(model, "private"):
                again = model(images("test")[0])
        assert torch.allclose(again, released.private, atol=1e-4, rtol=1e-4)


def test_state_dict_and_files(tmp_path):
    released = protected("keyed")
    state = released.plain.state_dict()
    save_weights(tmp_path / "w.safetensors", state)
    torch.save({"state_dict": {"module." + n: v for n, v in state.items()}}, tmp_path / "w.pt")
    torch.save(live("keyed").state_dict(), tmp_path / "whole.pt")
    write_claim(released.claim, tmp_path / "claim")
    template = TinyNet()
    before = snapshot(template)
    for suspect in (state, tmp_path / "w.safetensors", str(tmp_path / "w.pt")):
        bare = pp.verify(suspect, PASSPORT, tmp_path / "claim", loader())
        assert bare.accepted and bare.same_weights
        assert bare.fidelity is None and "model=" in bare.fidelity_reason
        full = pp.verify(suspect, PASSPORT, str(tmp_path / "claim"), loader(), model=template)
        assert full.accepted and full.fidelity
        assert full.public_accuracy == pytest.approx(accuracy(released.public), abs=1e-9)
    whole = pp.verify(tmp_path / "whole.pt", PASSPORT, released.claim)
    assert whole.accepted and whole.same_weights and "private branches" in whole.notes[0]
    unchanged(template, before)


def test_without_a_claim():
    verdict = pp.verify(protected("keyed").copy(), PASSPORT, loader=loader())
    assert verdict.accepted and verdict.matched == 192 and verdict.fidelity
    assert verdict.private_accuracy == pytest.approx(
        accuracy(protected("keyed").private), abs=NOISE
    )
    assert verdict.same_weights is None and verdict.claim == ""
    paper = protected("paper").copy()
    assert pp.verify(paper, PASSPORT, config=pp.PassportConfig.paper()).accepted
    assert pp.verify(paper, PASSPORT).accepted is False
    # Nothing of a keyed branch on GroupNorm is in the claim.
    released = protected("keyed", group_norm)
    verdict = pp.verify(released.copy(), PASSPORT, loader=loader())
    assert verdict.private_accuracy == pytest.approx(accuracy(released.private), abs=NOISE)


def test_a_timm_model(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=10, in_chans=1)
    pp.passportize(model, PASSPORT)
    x, y = images("train")
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for start in range(0, 320, 32):
        loss = pp.joint_loss(
            model, x[start : start + 32], y[start : start + 32], nn.functional.cross_entropy
        )
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    claim = pp.save_claim(model, tmp_path / "claim")
    pp.unpassportize(model)
    verdict = pp.verify(model, PASSPORT, claim, [(x[:64], y[:64])])
    assert claim.architecture == "resnet10t"
    assert verdict.accepted and verdict.total == claim.bits > 1500 and verdict.strength > 500
    fresh = timm.create_model("resnet10t", num_classes=10, in_chans=1)
    assert pp.verify(fresh, PASSPORT, claim).accepted is False


# --- strangers -----------------------------------------------------------------------------------


def test_a_thousand_strangers():
    released = protected("keyed")
    layout = released.claim.layout
    tensors = released.plain.state_dict()
    prepared = prepare_sites(layout, tensors, match_names(layout, tensors))
    matched = []
    for number in range(1000):
        stranger = pp.Passport.generate(
            "Stranger", date="2026-01-01", secret=number.to_bytes(32, "big")
        )
        matched.append(read_signature(ModelKey(stranger, layout), layout, prepared).matched)
    strengths = [-log2_binomial_tail(count, 192) for count in matched]
    assert max(strengths) < ACCEPT_STRENGTH / 2
    share = torch.tensor(matched, dtype=torch.float64) / 192
    # Each bit is a fair coin: mean and spread of the matches are those of the binomial.
    assert abs(float(share.mean()) - 0.5) < 5 * 0.5 / (192 * 1000) ** 0.5
    assert 0.85 < float(share.std()) / (0.5 / 192**0.5) < 1.15


def test_a_strangers_branch_is_near_chance():
    from dataclasses import replace

    released = protected("keyed")
    claim = replace(released.claim, commitment=EVE.commitment())
    verdict = pp.verify(released.copy(), EVE, claim, loader())
    assert verdict.accepted is False and verdict.message is None
    assert verdict.fidelity is False and verdict.private_accuracy < 40
    assert "do not carry" in verdict.reason


def test_a_model_that_was_never_protected():
    verdict = pp.verify(TinyNet(), PASSPORT, protected("keyed").claim, loader())
    assert verdict.accepted is False
    assert verdict.fidelity is None and "near chance" in verdict.fidelity_reason


# --- changed suspects ----------------------------------------------------------------------------


def test_fine_tuned():
    model = released = protected("keyed")
    model = released.copy().train()
    x, y = images("train")
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    for batch in torch.randperm(len(x), generator=torch.Generator().manual_seed(1)).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    verdict = pp.verify(model, PASSPORT, released.claim, loader())
    assert verdict.accepted and verdict.matched == 192 and verdict.fidelity
    assert verdict.same_weights is False


def test_pruned_and_rounded():
    released = protected("keyed")
    model = released.copy()
    with torch.no_grad():
        for conv in (model.conv1, model.conv2, model.conv3):
            weight = conv.weight
            weight[weight.abs() < weight.abs().flatten().quantile(0.5)] = 0
            weight[0] = 0  # a channel that is gone altogether
    verdict = pp.verify(model.bfloat16(), PASSPORT, released.claim)
    assert verdict.accepted and verdict.matched > 180


def test_folded_norms():
    """conv + norm become one convolution: no norm is left, and every bit is."""
    released = protected("keyed")
    model = released.copy().eval()
    for index in (1, 2, 3):
        conv, norm = getattr(model, f"conv{index}"), getattr(model, f"bn{index}")
        setattr(model, f"conv{index}", fuse_conv_bn_eval(conv, norm))
        setattr(model, f"bn{index}", nn.Identity())
    verdict = pp.verify(model, PASSPORT, released.claim, loader())
    assert verdict.accepted and verdict.matched == verdict.total == 192
    assert verdict.matched_by == "name"
    assert verdict.fidelity is None and "bn1 is a Identity" in verdict.fidelity_reason
    assert verdict.public_accuracy == pytest.approx(accuracy(released.public), abs=0.3)


def test_sync_batch_norm_is_still_a_norm():
    released = protected("keyed")
    model = nn.SyncBatchNorm.convert_sync_batchnorm(released.copy())
    verdict = pp.verify(model, PASSPORT, released.claim, loader())
    assert verdict.accepted and verdict.fidelity and verdict.same_weights


def test_new_head():
    released = protected("keyed")
    model = released.copy()
    model.fc = nn.Linear(128, 5)
    verdict = pp.verify(model, PASSPORT, released.claim)
    assert verdict.accepted and verdict.matched_by == "name"
    assert pp.verify(model, PASSPORT).accepted


class Renamed(nn.Module):
    """TinyNet with other names, and in a Sequential that counts."""

    def __init__(self, net):
        super().__init__()
        parts = [net.conv1, net.bn1, nn.ReLU(), net.conv2, net.bn2, nn.ReLU()]
        self.trunk = nn.Sequential(*parts, net.conv3, net.bn3, nn.ReLU())
        self.head = net.fc

    def forward(self, x):
        return self.head(self.trunk(x).mean((2, 3)))


def test_other_names():
    released = protected("keyed")
    model = Renamed(released.copy())
    before = snapshot(model)
    verdict = pp.verify(model, PASSPORT, released.claim, loader())
    unchanged(model, before)
    assert verdict.accepted and verdict.matched == 192
    assert verdict.matched_by == "assignment among equal shapes"
    assert any("other names" in note for note in verdict.notes)
    # No two weights of this net have one shape, so there is one assignment.
    assert verdict.log2_alternatives == LOOKS_PRICE
    assert verdict.strength == pytest.approx(192 - verdict.log2_alternatives)
    assert verdict.sites[0].found_as == "trunk.0.weight"
    assert verdict.private_accuracy == pytest.approx(accuracy(released.private), abs=NOISE)
    # As weights with a model that has the old names.
    verdict = pp.verify(model.state_dict(), PASSPORT, released.claim, loader(), model=TinyNet())
    assert verdict.accepted and verdict.fidelity


def test_names_that_are_those_of_other_layers():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(8))
            self.norms = nn.ModuleList(nn.BatchNorm1d(16) for _ in range(8))

        def forward(self, x):
            for layer, norm in zip(self.layers, self.norms, strict=True):
                x = torch.relu(norm(layer(x)))
            return x

    torch.manual_seed(0)
    model = Net()
    x = torch.randn(64, 16)
    pp.passportize(model, PASSPORT, config=pp.PassportConfig.signature(), example_inputs=x)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(600):
        optimizer.zero_grad()
        pp.joint_loss(model, x, x, nn.functional.mse_loss).total.backward()
        optimizer.step()
        if pp.signature_accuracy(model) == 1.0:
            break
    from passportize.release.claim import claim_of

    claim = claim_of(model)
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if isinstance(module, pp.PassportLayer):
            module.passport.switch.saved = True
    pp.unpassportize(plain)
    straight = pp.verify(plain, PASSPORT, claim)
    assert straight.strength == pytest.approx(-straight.log2_p - LOOKS_PRICE) and straight.accepted
    # The same tensors in the same order, but every name is now that of another layer.
    state = OrderedDict()
    for name, value in plain.state_dict().items():
        kind, number, attribute = name.split(".")
        state[f"{kind}.{(int(number) + 3) % 8}.{attribute}"] = value
    shifted = pp.verify(state, PASSPORT, claim)
    assert shifted.accepted and shifted.matched == 128
    assert shifted.matched_by == "assignment among equal shapes"
    # 8! assignments, and one bit for two looks.
    assert shifted.log2_alternatives == pytest.approx(math.log2(math.factorial(8)) + LOOKS_PRICE)


def test_missing_extra_and_reshaped_layers():
    released = protected("keyed")
    state = released.plain.state_dict()
    del state["conv2.weight"]
    state["conv1.weight"] = state["conv1.weight"][:16]
    state["extra.weight"] = torch.zeros(7, 7)
    verdict = pp.verify(state, PASSPORT, released.claim)
    assert verdict.accepted and (verdict.matched, verdict.total) == (128, 128)
    notes = {site.name: site.note for site in verdict.sites}
    assert "conv1.weight is of shape (16, 1, 3, 3), not (32, 1, 3, 3)" in notes["bn1"]
    assert "no tensor stands for conv2.weight" in notes["bn2"]
    assert any("2 of 3 sites are missing" in note for note in verdict.notes)
    assert "missing" in str(verdict)
    assert verdict.message is None or verdict.message.owner == "Acme"


def test_too_little_to_judge():
    released = protected("keyed")
    state = released.plain.state_dict()
    few = {name: value for name, value in state.items() if "3" not in name and "2" not in name}
    verdict = pp.verify(few, PASSPORT, released.claim)
    assert verdict.accepted is None and "32 of 192 bits" in verdict.reason
    none = pp.verify({"other": torch.zeros(3)}, PASSPORT, released.claim)
    assert none.accepted is None and "no site" in none.reason and none.total == 0
    normless = nn.Sequential(nn.Linear(4, 4))
    assert pp.verify(normless, PASSPORT, released.claim).accepted is None
    assert pp.verify(normless, PASSPORT).accepted is None


def test_weights_that_are_not_numbers():
    model = protected("keyed").copy()
    with torch.no_grad():
        model.conv1.weight[0, 0, 0, 0] = float("nan")
        model.conv2.weight.fill_(float("inf"))
    verdict = pp.verify(model, PASSPORT, protected("keyed").claim)
    assert verdict.accepted and verdict.sites[2].matched == 128


@pytest.mark.parametrize(
    "change", ["float64", "float16", "int8", "sparse", "complex", "transposed"]
)
def test_weights_in_other_types_and_layouts(change):
    released = protected("keyed")
    state = dict(released.plain.state_dict())
    for name in ("conv1.weight", "conv2.weight", "conv3.weight"):
        weight = state[name]
        if change == "int8":
            scale = weight.abs().amax((1, 2, 3), keepdim=True) / 127
            state[name] = (weight / scale).round().to(torch.int8)
        elif change == "sparse":
            state[name] = weight.to_sparse()
        elif change == "complex":
            state[name] = weight.to(torch.complex64)
        elif change == "transposed":
            state[name] = weight.contiguous(memory_format=torch.channels_last)
        else:
            state[name] = weight.to(getattr(torch, change))
    verdict = pp.verify(state, PASSPORT, released.claim)
    if change == "complex":
        assert verdict.accepted is None and "is complex" in verdict.sites[0].note
    else:
        assert verdict.accepted and verdict.matched == 192


def test_meta_weights():
    with torch.device("meta"):
        empty = TinyNet()
    with pytest.raises(InvalidArgument, match="meta"):
        pp.verify(empty, PASSPORT, protected("keyed").claim)


def test_sites_that_keep_statistics_only(tmp_path):
    torch.manual_seed(0)
    model = TinyNet()
    pp.passportize(model, PASSPORT, where="bn3")
    train(model, 3, 0.1)
    with torch.no_grad(), pp.branch(model, "private"):
        private = accuracy(model(images("test")[0]))
    claim = pp.save_claim(model, tmp_path / "claim")
    assert [site.role.value for site in claim.sites] == ["statistics", "statistics", "bound"]
    pp.unpassportize(model)
    flip_channel_signs(model, torch.Generator().manual_seed(0), example_inputs=loader()[0][0])
    verdict = pp.verify(model, PASSPORT, tmp_path / "claim", loader())
    assert verdict.accepted and verdict.total == 128
    assert verdict.private_accuracy == pytest.approx(private, abs=NOISE)


def test_a_model_without_norms(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10))
    pp.passportize(model, PASSPORT, config=pp.PassportConfig.signature())
    x, y = images("train")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(40):
        optimizer.zero_grad()
        pp.joint_loss(model, x.flatten(1), y, nn.functional.cross_entropy).total.backward()
        optimizer.step()
    claim = pp.save_claim(model, tmp_path / "claim")
    pp.unpassportize(model)
    data = [(x.flatten(1), y)]
    for claimed in (claim, None):
        verdict = pp.verify(model, PASSPORT, claimed, data)
        assert verdict.accepted and verdict.strength > 64
        assert verdict.fidelity is None and "no private branch" in verdict.fidelity_reason


# --- the suspect is left as it was ---------------------------------------------------------------


class Boom(Exception):
    pass


def bad_loader():
    yield loader()[0]
    raise Boom


@pytest.mark.parametrize("where", ["loader", "model", "targets"])
def test_left_as_it_was_after_an_exception(where):
    released = protected("keyed")
    model = released.copy().train()
    data = loader()
    if where == "loader":
        data = bad_loader()
    elif where == "targets":
        data = [(data[0][0], data[0][1][:-1])]
    else:
        calls = []

        def hook(module, args):
            calls.append(1)
            if len(calls) == 4:
                raise Boom

        model.bn3.register_forward_pre_hook(hook)
    before = snapshot(model)
    with pytest.raises(InvalidArgument if where == "targets" else Boom):
        pp.verify(model, PASSPORT, released.claim, data)
    unchanged(model, before)


def test_random_numbers_of_a_loader_are_given_back():
    released = protected("keyed")
    x, y = images("test")
    data = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, y), batch_size=90, shuffle=True
    )
    model = released.copy()
    before = snapshot(model)
    assert pp.verify(model, PASSPORT, released.claim, data).fidelity
    unchanged(model, before)


def test_on_another_device_a_copy_is_run():
    released = protected("keyed")
    model = released.copy()
    before = snapshot(model)
    assert pp.verify(model, PASSPORT, released.claim, loader(), device="cpu").fidelity
    unchanged(model, before)


def test_inputs_as_tuple_dict_and_nested_outputs():
    released = protected("keyed")

    class Wordy(TinyNet):
        def forward(self, x, scale=1.0):
            return super().forward(x) * scale, x

    model = Wordy()
    model.load_state_dict(released.plain.state_dict())
    x, y = images("test")
    for inputs in ((x, 2.0), {"x": x, "scale": 1.0}):
        verdict = pp.verify(model, PASSPORT, released.claim, [(inputs, y)])
        assert verdict.public_accuracy == pytest.approx(accuracy(released.public), abs=1e-9)
    assert pp.verify(model, PASSPORT, released.claim, []).fidelity_reason == "the loader is empty"
    with pytest.raises(InvalidArgument, match="yield"):
        pp.verify(model, PASSPORT, released.claim, [x])


# --- arguments -----------------------------------------------------------------------------------


def test_wrong_arguments(tmp_path):
    released = protected("keyed")
    claim, model = released.claim, released.copy()
    with pytest.raises(WrongPassport, match="another passport"):
        pp.verify(model, EVE, claim)
    for error, arguments in [
        (InvalidArgument, (model, "acme.passport", claim)),
        (InvalidArgument, (model, PASSPORT, 3)),
        (InvalidArgument, (3, PASSPORT, claim)),
        (InvalidArgument, ({}, PASSPORT, claim)),
        (InvalidArgument, (model.state_dict(), PASSPORT)),
        (AlreadyPassportized, (live("keyed"), PASSPORT, claim)),
        (WrappedModel, (nn.DataParallel(model), PASSPORT, claim)),
        (CheckpointError, (tmp_path / "none.pt", PASSPORT, claim)),
    ]:
        with pytest.raises(error):
            pp.verify(*arguments)
    for error, keywords in [
        (InvalidArgument, {"model": model}),
        (InvalidArgument, {"config": pp.PassportConfig.paper()}),
    ]:
        with pytest.raises(error):
            pp.verify(model, PASSPORT, claim, **keywords)
    state = model.state_dict()
    with pytest.raises(CheckpointError, match="right architecture"):
        pp.verify(state, PASSPORT, claim, model=nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 4)))
    with pytest.raises(AlreadyPassportized, match="model="):
        pp.verify(state, PASSPORT, claim, model=copy.deepcopy(live("keyed")))


# --- the verdict ---------------------------------------------------------------------------------


def test_verdict_as_json_and_text():
    released = protected("keyed")
    verdict = pp.verify(released.copy(), PASSPORT, released.claim, loader())
    record = json.loads(json.dumps(verdict.to_dict()))
    assert record["accepted"] is True and record["p_value"] == "2^-190"
    assert record["message"] == {"owner": "Acme", "contact": "", "date": "2026-01-31"}
    assert record["accept_strength"] == ACCEPT_STRENGTH == 64.0
    assert record["fidelity_gap"] == FIDELITY_GAP == 5.0
    assert [site["bits"] for site in record["sites"]] == [32, 32, 128]
    text = str(verdict)
    for part in ("conv3.weight", "128/128", "2^-190", "Acme, 2026-01-31", "ACCEPTED", "passed"):
        assert part in text


def test_a_failed_fidelity_is_said_in_words():
    released = protected("keyed")
    model = released.copy()
    with torch.no_grad():
        # The public branch stays, the private statistics no longer fit.
        for norm in (model.bn2, model.bn3):
            norm.bias -= norm.weight * norm.running_mean / (norm.running_var + norm.eps).sqrt()
            norm.running_mean.zero_()
    verdict = pp.verify(model, PASSPORT, released.claim, loader())
    assert verdict.accepted is True
    assert verdict.public_accuracy == pytest.approx(accuracy(released.public), abs=1e-9)
    if verdict.fidelity is False:
        assert "private branch fails" in verdict.reason
        assert "FAILED" in str(verdict)


@pytest.mark.parametrize("preset", ["keyed", "paper", "signature"])
def test_a_default_device_of_the_user_changes_nothing(preset, tmp_path):
    """``with torch.device(...)``, or a default device, is for the user's own tensors."""
    passport = pp.Passport.generate(owner="Acme Vision", date="2026-11-28", secret=bytes(range(32)))
    model = timm.create_model("test_resnet")
    config = getattr(pp.PassportConfig, preset)()

    def verdict():
        pp.passportize(model, passport, config=config)
        accuracy = pp.signature_accuracy(model)
        pp.save_claim(model, tmp_path / "claim.safetensors", overwrite=True)
        pp.unpassportize(model)
        return accuracy, str(pp.verify(model, passport, tmp_path / "claim.safetensors"))

    expected = verdict()
    with torch.device("meta"):
        assert verdict() == expected
