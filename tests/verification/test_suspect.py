"""What may be verified: live models, state dicts, files, in every type, under other names."""

from __future__ import annotations

import copy
import sys
import threading
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

import passportize as pp
from passportize.errors import AlreadyPassportized, CheckpointError, InvalidArgument, WrappedModel
from passportize.release.checkpoint import save_weights
from passportize.release.claim_file import write_claim
from passportize.utils.frozen import copy_to_run
from passportize.verification.suspect import open_suspect
from tests.support.small_protected import PASSPORT, TinyNet, accuracy, live, loader, protected
from tests.support.snapshots import Snapshot, unchanged


def same(ours: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return list(ours) == list(expected) and all(
        torch.equal(tensor, expected[name]) for name, tensor in ours.items()
    )


def test_a_model_is_copied_to_be_run() -> None:
    model = TinyNet()
    opened = open_suspect(model, None)
    assert type(opened.module) is TinyNet and opened.module is not model
    assert opened.module.conv1.weight is model.conv1.weight
    assert opened.whole and opened.named == {} and opened.notes == []
    assert same(opened.tensors, model.state_dict())
    assert not any(tensor.requires_grad for tensor in opened.tensors.values())


def test_weights_go_into_a_copy_of_a_model() -> None:
    model = TinyNet()
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    before = Snapshot.of(model)
    opened = open_suspect(state, model)
    unchanged(model, before)
    assert opened.module is not None and opened.module is not model and opened.whole
    assert same(opened.module.state_dict(), state) and same(opened.tensors, state)
    assert opened.named == {name: name for name in state}
    assert open_suspect(state, None).module is None


def test_names_of_the_file_are_kept_beside_those_of_the_model() -> None:
    state = {
        f"x{index}.{name.rpartition('.')[2]}": tensor
        for index, (name, tensor) in enumerate(TinyNet().state_dict().items())
    }
    opened = open_suspect(state, TinyNet())
    assert opened.module is not None and opened.whole
    assert opened.named["x0.weight"] == "conv1.weight"
    assert all(
        torch.equal(opened.module.state_dict()[own], state[other])
        for other, own in opened.named.items()
    )


def test_weights_that_are_missing_are_said() -> None:
    state = {n: t for n, t in TinyNet().state_dict().items() if not n.startswith("bn2")}
    opened = open_suspect(state, TinyNet())
    assert not opened.whole
    assert opened.notes[0].startswith("the state dict lacks 5 tensors of TinyNet: bn2.weight, ")
    assert opened.notes[0].endswith(" ...")


def test_entries_that_are_no_tensors_are_left_out() -> None:
    opened = open_suspect({"w": torch.ones(2), "epoch": 3, 5: torch.ones(1)}, None)
    assert list(opened.tensors) == ["w"]


def test_private_parts_are_not_looked_at() -> None:
    whole = live("keyed")
    opened = open_suspect(whole.state_dict(), None)
    assert same(opened.tensors, pp.host_state_dict(whole))
    assert opened.notes == [
        "the state dict has private branches too; only the plain part was looked at"
    ]


def test_what_is_no_suspect(tmp_path) -> None:
    for error, suspect, model in [
        (InvalidArgument, 3, None),
        (InvalidArgument, {}, None),
        (InvalidArgument, {"a": 1}, None),
        (InvalidArgument, TinyNet(), TinyNet()),
        (InvalidArgument, TinyNet().state_dict(), "TinyNet"),
        (AlreadyPassportized, live("keyed"), None),
        (AlreadyPassportized, TinyNet().state_dict(), copy.deepcopy(live("keyed"))),
        (WrappedModel, nn.DataParallel(TinyNet()), None),
        (WrappedModel, TinyNet().state_dict(), nn.DataParallel(TinyNet())),
        (CheckpointError, tmp_path / "none.pt", None),
        (CheckpointError, TinyNet().state_dict(), nn.Linear(3, 4)),
    ]:
        with pytest.raises(error):
            open_suspect(suspect, model)


# --- as verify takes them ------------------------------------------------------------------------


def test_state_dict_and_files(tmp_path):
    released = protected("keyed")
    state = released.plain.state_dict()
    save_weights(tmp_path / "w.safetensors", state)
    torch.save({"state_dict": {"module." + n: v for n, v in state.items()}}, tmp_path / "w.pt")
    torch.save(live("keyed").state_dict(), tmp_path / "whole.pt")
    write_claim(released.claim, tmp_path / "claim")
    template = TinyNet()
    before = Snapshot.of(template)
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


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantized_weights() -> None:
    released = protected("keyed")
    state = dict(released.plain.state_dict())
    for name in ("conv1.weight", "conv2.weight", "conv3.weight"):
        scale = float(state[name].abs().max()) / 127
        state[name] = torch.quantize_per_tensor(state[name], scale, 0, torch.qint8)
    verdict = pp.verify(state, PASSPORT, released.claim)
    assert verdict.accepted and verdict.matched > 185


def test_threads_may_verify_one_model_at_once() -> None:
    """A live suspect is copied; nobody runs, changes or waits for it."""
    model, claim = protected("keyed").copy(), protected("keyed").claim
    data = loader()[:1]
    before = Snapshot.of(model)
    alone = pp.verify(model, PASSPORT, claim, data)
    switched = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        with ThreadPoolExecutor(4) as pool:
            verdicts = list(pool.map(lambda _: pp.verify(model, PASSPORT, claim, data), range(8)))
    finally:
        sys.setswitchinterval(switched)
    for verdict in verdicts:
        assert verdict.accepted and verdict.matched == alone.matched
        assert verdict.private_accuracy == alone.private_accuracy
        assert verdict.public_accuracy == alone.public_accuracy
    unchanged(model, before)


def test_of_a_model_that_cannot_be_copied_the_weights_are_read() -> None:
    model = protected("keyed").copy()
    model.lock = threading.Lock()
    verdict = pp.verify(model, PASSPORT, protected("keyed").claim, loader())
    assert verdict.accepted and verdict.fidelity is None
    assert "cannot be copied" in verdict.fidelity_reason


def test_old_weight_norm_is_copied_with_what_it_computed_last() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.utils.weight_norm(nn.Linear(4, 4))
    model(torch.ones(1, 4))
    twin = copy_to_run(model)
    assert twin.weight_v is model.weight_v and twin.weight is not model.weight
    assert torch.equal(twin(torch.ones(1, 4)), model(torch.ones(1, 4)))
