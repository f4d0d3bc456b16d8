"""Tensors of odd kinds: handled from plan to verdict, or refused by name before anything."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import passportize as pp
from passportize.errors import SurgeryError, WrappedModel
from passportize.release.claim import claim_of
from passportize.utils.dense import LARGEST_DENSE
from tests.support.round_trip import ModelSnapshot, assert_round_trip

pytestmark = pytest.mark.filterwarnings(
    "ignore:Sparse",
    "ignore:.*quant",
    "ignore:TypedStorage",
    "ignore::torch.jit.TracerWarning",
    "ignore:.*torch.jit",
    "ignore:The PyTorch API of nested tensors",
)

PASSPORT = pp.Passport.generate("Odd", date="2026-11-28", secret=bytes(range(32)))
NODES, WIDTH = 12, 128


class Mesh(nn.Module):
    """Mixes nodes by a fixed matrix, as networks on graphs and meshes do."""

    def __init__(self, matrix: Tensor, persistent: bool = True) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix, persistent=persistent)
        self.first, self.norm = nn.Linear(8, WIDTH), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.matrix.dequantize() if self.matrix.is_quantized else self.matrix
        mixed = torch.stack([matrix.matmul(sample) for sample in x])
        return self.head(self.norm(self.first(mixed)).relu().mean(1))


def _matrix() -> Tensor:
    return torch.eye(NODES).roll(1, 0)


def _made_for_inference() -> Tensor:
    with torch.inference_mode():
        return _matrix()


def _per_channel(dtype: torch.dtype) -> Tensor:
    points = torch.zeros(NODES)
    return torch.quantize_per_channel(_matrix(), torch.full((NODES,), 0.1), points, 0, dtype)


MATRICES: dict[str, Callable[[], Tensor]] = {
    "coo": lambda: _matrix().to_sparse(),
    "csr": lambda: _matrix().to_sparse_csr(),
    "csc": lambda: _matrix().to_sparse_csc(),
    "bsr": lambda: _matrix().to_sparse_bsr((2, 2)),
    "quantised": lambda: torch.quantize_per_tensor(_matrix(), 0.1, 0, torch.qint8),
    "quantised by channel": lambda: _per_channel(torch.qint8),
    "made for inference": _made_for_inference,
}


def inputs() -> Tensor:
    return torch.randn(8, NODES, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MATRICES)
def test_odd_buffers_from_plan_to_verdict(name: str, tmp_path: Path) -> None:
    """What is released is recognised bit for bit: live, as a state dict, as a file."""
    torch.manual_seed(0)
    model = Mesh(MATRICES[name]())
    buffer, expected = model.matrix, model.matrix.dequantize() if "quant" in name else None
    pp.passportize(model, PASSPORT, example_inputs=inputs())
    pp.embed_signature(model)
    loss = pp.joint_loss(model.train(), inputs(), torch.arange(8) % 4, F.cross_entropy)
    loss.total.backward()
    claim = pp.save_claim(model, tmp_path / "claim")
    pp.unpassportize(model)
    assert model.matrix is buffer
    assert expected is None or torch.equal(buffer.dequantize(), expected)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    for suspect in (model, model.state_dict(), tmp_path / "weights.pt"):
        verdict = pp.verify(suspect, PASSPORT, claim)
        assert verdict.accepted and verdict.same_weights
    state = {**model.state_dict(), "matrix": torch.zeros(NODES, NODES)}
    assert not pp.verify(state, PASSPORT, claim).same_weights


@pytest.mark.parametrize("name", ["coo", "quantised"])
def test_weights_are_loaded_beside_odd_buffers(name: str) -> None:
    torch.manual_seed(0)
    model = pp.passportize(Mesh(MATRICES[name]()), PASSPORT, example_inputs=inputs())
    pp.embed_signature(model)
    claim = claim_of(model)
    state = pp.unpassportize(model).state_dict()
    data = [(inputs(), model.eval()(inputs()).argmax(1))]
    verdict = pp.verify(state, PASSPORT, claim, data, model=Mesh(MATRICES[name]()))
    assert verdict.public_accuracy == 100


def _far_too_large() -> Tensor:
    side = int((LARGEST_DENSE / 4) ** 0.5) + 1
    return torch.sparse_coo_tensor(torch.zeros(2, 1).long(), torch.ones(1), (side, side))


def _nested() -> Tensor:
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


@pytest.mark.parametrize("make", [_far_too_large, _nested])
def test_buffers_that_nobody_can_hash_are_named_in_plan(make: Callable[[], Tensor]) -> None:
    for call in (pp.plan, lambda model: pp.passportize(model, PASSPORT)):
        with pytest.raises(SurgeryError, match=r"Mesh: matrix is .*persistent=False"):
            call(Mesh(make()))
    assert pp.plan(Mesh(make(), persistent=False)).bits == WIDTH


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, WIDTH), nn.LayerNorm(WIDTH), nn.ReLU(), nn.Linear(WIDTH, 16))


def test_weights_that_cannot_be_trained_are_named_in_plan() -> None:
    with torch.inference_mode():
        model = network()
    before = ModelSnapshot.of(model)
    with pytest.raises(SurgeryError, match=r"0\.weight was made under torch\.inference_mode"):
        pp.plan(model)
    before.check(model)
    assert_round_trip(copy.deepcopy(model), PASSPORT, torch.randn(4, 16))
    model = network()
    model[0].weight = nn.Parameter(torch.randn(1, 16).expand(WIDTH, 16))
    with pytest.raises(SurgeryError, match=r"0\.weight is expanded"):
        pp.passportize(model, PASSPORT)
    model[0].weight = nn.Parameter(model[0].weight.detach().contiguous())
    assert_round_trip(model, PASSPORT, torch.randn(4, 16))


def test_statistics_that_are_not_finite_are_named_in_plan() -> None:
    model = nn.Sequential(nn.Linear(16, WIDTH), nn.BatchNorm1d(WIDTH))
    model[1].running_var[3] = torch.inf
    with pytest.raises(SurgeryError, match=r"1\.running_var is not finite"):
        pp.passportize(model, PASSPORT)
    model[1].reset_running_stats()
    assert pp.plan(model).bits == WIDTH


class Resizing(nn.Module):
    """A buffer without entries until the first forward pass, as observers have it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(16, WIDTH), nn.LayerNorm(WIDTH)
        self.register_buffer("largest", torch.empty(0))

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        with torch.no_grad():
            self.largest.resize_(WIDTH).copy_(z.amax(0))
        return self.norm(z)


def test_resized_buffers_and_quantisation_aware_training() -> None:
    assert_round_trip(Resizing(), PASSPORT, torch.randn(4, 16), joint=False)
    model = network().train()
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    torch.ao.quantization.prepare_qat(model, inplace=True)
    before = ModelSnapshot.of(model)
    (site,) = pp.plan(model, example_inputs=torch.randn(4, 16)).sites
    assert site.anchor.parts[0].weight == "0.weight"
    before.check(model)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).relu()


class Normed(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x))


SCRIPTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "script": torch.jit.script,
    "trace": lambda module: torch.jit.trace(module, torch.randn(4, 16)),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_parts_in_torchscript(name: str) -> None:
    """Without norms they are left alone; with norms they are named in plan."""
    model = nn.Sequential(SCRIPTS[name](Plain()), *network(), SCRIPTS[name](Plain()))
    inputs = torch.randn(4, 16)
    plan = pp.plan(model, example_inputs=inputs)
    assert [site.anchor.parts[0].weight for site in plan.sites] == ["1.weight"]
    assert_round_trip(model, PASSPORT, inputs)
    linear = nn.Sequential(SCRIPTS[name](Plain()), nn.Linear(16, 32))
    assert [s.name for s in pp.plan(linear, config=pp.PassportConfig.signature()).sites] == ["1"]
    model = nn.Sequential(SCRIPTS[name](Normed()), *network())
    for call in (pp.plan, lambda model: pp.passportize(model, PASSPORT)):
        with pytest.raises(WrappedModel, match=r"its submodule '0' is wrapped in .*ScriptModule"):
            call(model)
        with pytest.raises(WrappedModel, match=r"the model is wrapped in .*ScriptModule"):
            call(SCRIPTS[name](Plain()))
