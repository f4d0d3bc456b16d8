"""The check after surgery, and what is said about models that cannot be read."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor, nn

import passportize as pp
from passportize.anchors.autograd_run import walk_autograd
from passportize.errors import (
    ExampleInputFailed,
    ExampleInputRequired,
    NotPassportized,
    SurgeryError,
)
from passportize.layers.model import passport_layers
from passportize.surgery.probing import probe
from passportize.tracing.example_inputs import ExampleInputs
from tests.support.point_cloud_models import POINT_CLOUD_MODELS, Case
from tests.support.round_trip import ModelSnapshot

PASSPORT = pp.Passport.generate(owner="Probe", secret=bytes(range(32)), date="2026-01-01")
CASES = [pytest.param(case, id=name) for name, case in POINT_CLOUD_MODELS.items()]


@pytest.mark.parametrize("case", CASES)
def test_every_inserted_layer_runs_and_the_model_is_left_as_it_was(case: Case) -> None:
    model = case.build()
    inputs = case.inputs(2, 4)
    pp.passportize(model, PASSPORT, example_inputs=case.inputs(0, 4))
    before = ModelSnapshot.of(model)
    report = probe(model, inputs)
    before.check(model)
    assert sorted(report.called) == sorted(passport_layers(model)) and report.silent == ()
    assert report.private_differs is True
    assert "public output as without passports; private output differs" in str(report)


class Replaced(nn.Module):
    """Runs a copy of its norm that the module tree does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 32)
        self.norm = nn.BatchNorm1d(32)
        self.second = nn.Linear(32, 32)
        self.second_norm = nn.BatchNorm1d(32)
        self.hidden = [nn.BatchNorm1d(32)]

    def forward(self, x: Tensor, everything: bool = False) -> Tensor:
        norm = self.norm if everything else self.hidden[0].eval()
        return self.second_norm(self.second(norm(self.linear(x))))


def test_a_layer_that_is_passed_by_is_named() -> None:
    model = Replaced()
    x = torch.randn(8, 16)
    pp.passportize(model, PASSPORT, example_inputs={"x": x, "everything": True})
    report = probe(model, x)
    assert report.called == ("second_norm",) and report.silent == ("norm",)
    assert "1 of 2 layers ran" in str(report) and "silent: norm" in str(report)


def test_the_signature_preset_has_no_private_output() -> None:
    case = POINT_CLOUD_MODELS["dgcnn"]
    model = case.build()
    config = pp.PassportConfig.signature()
    pp.passportize(model, PASSPORT, config=config, example_inputs=case.inputs(0, 4))
    assert probe(model, case.inputs(0, 4)).private_differs is None


def test_probe_refuses_what_it_cannot_judge() -> None:
    case = POINT_CLOUD_MODELS["dgcnn"]
    model = case.build()
    with pytest.raises(NotPassportized):
        probe(model, case.inputs(0, 4))
    pp.passportize(model, PASSPORT, example_inputs=case.inputs(0, 4))
    with pytest.raises(ExampleInputFailed, match="DGCNN does not run on the example input"):
        probe(model, torch.randn(4, 7))
    layer = passport_layers(model)["bn2"]
    layer.register_forward_hook(lambda module, args, out: out + hasattr(module, "passport"))
    with pytest.raises(SurgeryError, match="not that of the plain model"):
        probe(model, case.inputs(0, 4))


class CudaOnly(nn.Module):
    """Asks for the GPU by name, as both public DGCNNs do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(16, 32, 1)
        self.norm = nn.BatchNorm1d(32)

    def forward(self, x: Tensor) -> Tensor:
        offset = torch.arange(x.size(0), device=torch.device("cuda:99"))
        return self.norm(self.conv(x)).amax(2) + offset.view(-1, 1)


class DataDependent(CudaOnly):
    """Branches on a value of its input, which no shape can tell."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return x * 2 if float(x.mean()) > 0 else x


def test_a_model_that_runs_on_cuda_only_says_so() -> None:
    with pytest.raises(ExampleInputFailed, match=r"(?i)cuda.*seems to run on CUDA only: move"):
        pp.plan(CudaOnly(), example_inputs=torch.randn(4, 16, 20))
    model = CudaOnly()
    pp.passportize(model, PASSPORT, anchors={"norm": "conv.weight"})
    with pytest.raises(ExampleInputFailed, match="does not run on the example input"):
        probe(model, torch.randn(4, 16, 20))


class NeedsPackage(CudaOnly):
    """Searches neighbours with a package that is not there, as PyG does without pyg-lib."""

    def forward(self, x: Tensor) -> Tensor:
        if float(x.mean()) != 0.5:
            raise ImportError("'knn_graph' requires 'pyg-lib>=0.6.0'")
        return x


def test_a_missing_package_is_named() -> None:
    with pytest.raises(ExampleInputFailed, match=r"requires 'pyg-lib>=0.6.0'. Install the package"):
        pp.plan(NeedsPackage(), example_inputs=torch.randn(4, 16, 20))


def test_neighbour_search_of_pyg_without_pyg_lib() -> None:
    pyg = pytest.importorskip("torch_geometric.nn")
    if importlib.util.find_spec("pyg_lib") is not None:
        pytest.skip("pyg-lib is installed")

    class Neighbours(CudaOnly):
        def forward(self, x: Tensor) -> Tensor:
            edges = pyg.knn_graph(x[:, :, 0], 2)
            return self.norm(self.conv(x)) + edges.sum()

    with pytest.raises(ExampleInputFailed, match=r"pyg-lib.*Install the package that is missing"):
        pp.plan(Neighbours(), example_inputs=torch.randn(4, 16, 20))


class Unreadable(nn.Module):
    """Takes what no guess of an input would be, and its weights are of no known kind."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 16))
        self.norm = nn.BatchNorm1d(32)

    def forward(self, clouds: dict[str, Tensor]) -> Tensor:
        return self.norm(torch.from_numpy(clouds["points"].numpy()) @ self.weight.T)


def test_a_model_that_needs_an_example_input_asks_for_one() -> None:
    with pytest.raises(ExampleInputRequired, match="Pass example_inputs=: a tensor, a tuple"):
        pp.passportize(Unreadable(), PASSPORT)
    planned = pp.plan(Unreadable(), example_inputs=({"points": torch.randn(4, 16)},))
    assert planned.bits == 32 and not any("guess" in note for note in planned.notes)
    assert pp.plan(Unreadable(), anchors={"norm": "weight"}).bits == 32


def test_a_tensor_on_another_device_is_named() -> None:
    """The meta device stands for one that tests do not have."""
    with pytest.raises(ExampleInputFailed, match="The model is on cpu, the example input on"):
        walk_autograd(
            DataDependent(), {"norm": [32]}, ExampleInputs.of(torch.randn(4, 16, 20, device="meta"))
        )


def test_a_forward_that_no_graph_can_hold_is_walked() -> None:
    planned = pp.plan(DataDependent(), example_inputs=torch.randn(4, 16, 20))
    assert planned.method == "autograd" and planned.bits == 32
    assert planned.sites[0].anchor is not None
    assert planned.sites[0].anchor.parts[0].weight == "conv.weight"


def test_an_input_that_does_not_fit_names_the_module() -> None:
    with pytest.raises(ExampleInputFailed, match="module 'conv' raised RuntimeError"):
        pp.plan(DataDependent(), example_inputs=torch.randn(4, 3, 20))


@pytest.mark.parametrize("name", ["pointnet2", "pyg_gin"])
def test_guesses_by_order_are_never_silent(name: str) -> None:
    planned = pp.plan(POINT_CLOUD_MODELS[name].build())
    guessed = [site for site in planned.sites if site.anchor and site.anchor.rule == "order"]
    assert guessed
    for site in guessed:
        assert any(
            note.startswith(f"{site.name}: bound to") and "pass example_inputs=" in note
            for note in planned.notes
        )
