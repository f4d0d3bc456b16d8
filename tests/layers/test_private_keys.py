"""Modules of the owner's that are called like ours: their tensors stay theirs, everywhere."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import passportize as pp
from passportize.errors import SurgeryError
from passportize.layers.private_keys import private_keys, private_prefixes
from passportize.release.audit import is_clean
from passportize.release.checkpoint import load_weights
from passportize.release.exporting import export
from passportize.release.strip import strip_checkpoint
from tests.support.snapshots import Snapshot, unchanged

PASSPORT = pp.Passport.generate("Names", date="2026-01-01", secret=bytes(range(32)))


class Body(nn.Module):
    """A small network with a batch norm and a layer norm, and something of the owner's in it."""

    def __init__(self, own: nn.Module | None = None, norm: str = "norm") -> None:
        super().__init__()
        self.first = nn.Linear(16, 96)
        self.add_module(norm, nn.BatchNorm1d(96))
        self.second, self.last = nn.Linear(96, 64), nn.LayerNorm(64)
        self.norm_name = norm
        if own is not None:
            self.passport = own

    def forward(self, x: Tensor) -> Tensor:
        x = getattr(self, self.norm_name)(self.first(x)).relu()
        if self.norm_name != "passport" and hasattr(self, "passport"):
            x = self.passport(x)
        return self.last(self.second(x))


class Holder(nn.Module):
    """Everything below the name that is ours."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.passport = inside

    def forward(self, x: Tensor) -> Tensor:
        return self.passport(x)


class Scale(nn.Module):
    """A parameter and a buffer that are called so."""

    def __init__(self) -> None:
        super().__init__()
        self.passport = nn.Parameter(torch.ones(96))
        self.register_buffer("running", torch.zeros(96))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.passport + self.running


MODELS: dict[str, Callable[[], nn.Module]] = {
    "a linear layer": lambda: Body(nn.Linear(96, 96)),
    "a norm with factors": lambda: Body(nn.BatchNorm1d(96)),
    "statistics and nothing else": lambda: Body(nn.BatchNorm1d(96, affine=False)),
    "a bottleneck": lambda: Body(nn.Sequential(nn.Linear(96, 24), nn.Linear(24, 96))),
    "a parameter": lambda: Body(Scale()),
    "the bound norm itself": lambda: Body(norm="passport"),
    "the whole network": lambda: Holder(Body()),
    "the network and a part of it": lambda: Holder(Body(nn.Linear(96, 96))),
    "an entry of a dict": lambda: Body(
        nn.Sequential(nn.ModuleDict({"passport": nn.Identity()})["passport"], nn.Linear(96, 96))
    ),
    "twice": lambda: Holder(Holder(Body(nn.BatchNorm1d(96, affine=False)))),
}


@pytest.mark.parametrize("preset", ["keyed", "paper"])
@pytest.mark.parametrize("name", MODELS)
def test_what_is_the_owners_stays_through_training_release_and_verification(
    name: str, preset: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, x = MODELS[name](), torch.randn(8, 16)
    keys = list(model.state_dict())
    assert is_clean(model)
    config = pp.PassportConfig.preset(preset)
    pp.passportize(model, PASSPORT, config=config, example_inputs=x)
    pp.embed_signature(model)
    joined = model.state_dict()
    assert len(joined) > len(keys) and not is_clean(model)
    # Live and from a file, the same keys are ours.
    assert list(pp.host_state_dict(model)) == list(pp.host_state_dict(joined)) == keys
    assert private_keys(joined) == {
        key for key in joined if key.startswith(tuple(private_prefixes(model)))
    }
    torch.save({"state_dict": joined}, tmp_path / "training.pt")
    claim = pp.save_claim(model, tmp_path / "claim")
    pp.unpassportize(model)

    report = is_clean(model)
    assert report and report.saved, report
    assert list(pp.host_state_dict(model)) == keys
    for suffix in ("pt", "safetensors"):
        plain = tmp_path / f"plain.{suffix}"
        assert strip_checkpoint(tmp_path / "training.pt", plain) == len(joined) - len(keys)
        fresh = MODELS[name]()
        fresh.load_state_dict(load_weights(plain))
        assert pp.verify(plain, PASSPORT, claim, model=fresh).same_weights
    export(model, tmp_path / "exported.safetensors", to="safetensors")
    assert set(load_weights(tmp_path / "exported.safetensors")) == set(keys)
    verdict = pp.verify(model, PASSPORT, claim, [(x, torch.arange(8) % 64)])
    assert verdict.accepted and verdict.same_weights and verdict.private_accuracy is not None


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
        lambda state: dict(reversed(state.items())),
    ],
)
def test_prefixes_and_order_change_nothing(wrap: Callable[[dict[str, Tensor]], dict[str, Tensor]]):
    model = pp.passportize(Body(nn.Linear(96, 96)), PASSPORT, example_inputs=torch.zeros(4, 16))
    state = wrap(model.state_dict())
    own = [name for name in state if "norm.passport." in name]
    assert len(own) == 4 and private_keys(state) == set(own)


class Twin(nn.BatchNorm1d):
    """A norm that keeps a second set of statistics, under the name that would be ours."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.passport = nn.BatchNorm1d(channels, affine=False)


def test_tensors_that_cannot_be_told_from_ours_are_refused_before_anything_is_changed():
    model = nn.Sequential(nn.Linear(16, 96), Twin(96), nn.Linear(96, 4))
    x = torch.randn(4, 16)
    before = Snapshot.of(model)
    with pytest.raises(SurgeryError, match=r"1\.passport\.num_batches_tracked.*another name"):
        pp.passportize(model, PASSPORT, example_inputs=x)
    unchanged(model, before)


def test_statistics_that_the_host_keeps_out_of_its_state_dict_stay_out_of_ours():
    class Hidden(nn.BatchNorm1d):
        def __init__(self, channels: int) -> None:
            super().__init__(channels)
            self.register_buffer("running_mean", torch.zeros(channels), persistent=False)
            self._non_persistent_buffers_set.add("running_var")

    model = nn.Sequential(nn.Linear(16, 96), Hidden(96), nn.Linear(96, 4))
    keys = list(model.state_dict())
    pp.passportize(model, PASSPORT, example_inputs=torch.randn(4, 16))
    assert "1.passport.running_mean" not in model.state_dict()
    assert list(pp.host_state_dict(model.state_dict())) == keys


def test_weights_cannot_be_hidden_under_a_name_that_is_ours():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 96), nn.LayerNorm(96), nn.Linear(96, 128))
    pp.passportize(model, PASSPORT, example_inputs=torch.randn(4, 128))
    pp.embed_signature(model)
    from passportize.release.claim import claim_of

    claim = claim_of(model)
    state = pp.unpassportize(model).state_dict()
    state["x.passport.bottleneck.0.weight"] = state.pop("0.weight")
    state["x.passport.bottleneck.2.weight"] = state.pop("2.weight")
    assert len(private_keys(state)) == 2
    assert pp.verify(state, PASSPORT, claim).accepted


def test_a_string_or_a_module_that_is_called_like_the_package_is_no_trace():
    model = nn.Sequential(nn.Linear(4, 4))
    model.note = "trained with passportize, see /home/me/passportize"
    assert is_clean(model)
    model.note = pp.PassportConfig.keyed()
    assert "attribute note is a PassportConfig" in str(is_clean(model))
    model.note = [pp.PassportConfig.keyed()]
    assert "torch.save of the model names passportize" in str(is_clean(model))


names = st.lists(
    st.sampled_from(["a", "passport", "norm", "counter", "0"]), min_size=1, max_size=4
).map(tuple)
tails = st.sampled_from(
    ["weight", "running_mean", "running_var", "bottleneck.0.weight", "counter._extra_state"]
)


@given(st.dictionaries(st.tuples(names, tails), st.sampled_from([(), (3,), (2, 3)]), max_size=8))
@settings(max_examples=200, deadline=None)
def test_whatever_the_names_nothing_is_dropped_that_has_a_plain_neighbour(entries):
    state = {".".join([*path, tail]): torch.zeros(shape) for (path, tail), shape in entries.items()}
    private = private_keys(state)
    assert private <= set(state)
    for key in private:
        path, _, tail = f".{key}".rpartition(".passport.")
        assert tail != "weight"
        # A branch's or nothing: no other tensor lies under the same name.
        below = {other for other in state if f".{other}".startswith(f"{path}.passport.")}
        assert below <= private


def test_a_copy_in_a_file_is_told_apart_too():
    model = pp.passportize(Body(), PASSPORT, example_inputs=torch.zeros(4, 16))
    stream = io.BytesIO()
    torch.save(copy.deepcopy(model).state_dict(), stream)
    stream.seek(0)
    state = torch.load(stream, weights_only=True)
    assert list(pp.host_state_dict(state)) == list(Body().state_dict())
