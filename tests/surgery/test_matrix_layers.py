"""Layers with a matrix of their own, whoever wrote them: they carry bits where no norm does."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

with warnings.catch_warnings():
    # PyG's own use of torch.jit.script.
    warnings.simplefilter("ignore", DeprecationWarning)
    import torch_geometric.nn as pyg

import passportize as pp
from passportize.errors import DegenerateSite, NoNormalization, UninitializedModule
from passportize.signature.site import Role
from tests.support.round_trip import assert_round_trip

PASSPORT = pp.Passport.generate("Matrices", date="2026-11-28", secret=bytes(range(32)))
SIGNATURE = pp.PassportConfig.signature(sign_every=1)
NODES = 24


def graph() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    edges = torch.randint(0, NODES, (2, 4 * NODES), generator=generator)
    return torch.randn(NODES, 16, generator=generator), edges


GRAPH_MODELS: dict[str, Callable[[], nn.Module]] = {
    "GCN": lambda: pyg.GCN(16, 32, 2, 8),
    "GAT": lambda: pyg.GAT(16, 32, 2, 8),
    "GraphSAGE": lambda: pyg.GraphSAGE(16, 32, 2, 8),
    "GIN": lambda: pyg.GIN(16, 32, 2, 8, norm=None),
    "GraphUNet": lambda: pyg.GraphUNet(16, 32, 8, 1),
    "NeuralFingerprint": lambda: pyg.models.NeuralFingerprint(16, 24, 8, 1, max_degree=3),
    "DiffGroupNorm": lambda: pyg.GCN(
        16, 32, 2, 8, norm="diff_group_norm", norm_kwargs={"groups": 4}
    ),
}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return GRAPH_MODELS[name]()


def share_of_bound_weights(model: nn.Module) -> float:
    plan = pp.plan(model, config=SIGNATURE)
    bound = {site.anchor.parts[0].weight for site in plan.sites if site.anchor is not None}
    matrices = {name: p.numel() for name, p in model.named_parameters() if p.dim() >= 2}
    return sum(matrices[name] for name in bound) / sum(matrices.values())


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("name", GRAPH_MODELS)
def test_graph_models_without_bound_norms(name: str) -> None:
    """GCN, GAT and their kin are made of PyG's own Linear."""
    assert share_of_bound_weights(network(name)) > 0.9
    joint = name != "NeuralFingerprint"  # a degree that no node has leaves its weights alone
    layers = assert_round_trip(network(name), PASSPORT, graph(), config=SIGNATURE, joint=joint)
    assert len(layers) >= 2


def test_the_error_of_keyed_names_the_way() -> None:
    with pytest.raises(DegenerateSite, match=r"PassportConfig\.signature\(\) marks its matrices"):
        pp.passportize(network("DiffGroupNorm"), PASSPORT, example_inputs=graph())


def test_a_marked_graph_model_is_found(tmp_path: Path) -> None:
    model = pp.passportize(network("GCN"), PASSPORT, config=SIGNATURE, example_inputs=graph())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    targets = torch.arange(NODES) % 8
    for _ in range(80):
        optimizer.zero_grad()
        pp.joint_loss(model.train(), graph(), targets, F.cross_entropy).total.backward()
        optimizer.step()
    assert pp.signature_accuracy(model) == 1.0
    claim = pp.save_claim(model, tmp_path / "claim")
    verdict = pp.verify(pp.unpassportize(model), PASSPORT, claim)
    assert (verdict.matched, verdict.total) == (40, 40)


class OthersLinear(nn.Module):
    """Linear as libraries write it that do not derive from torch's."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / inputs**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class InFront(nn.Module):
    """Inputs first, as in the equations of papers."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels = inputs, outputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Table(nn.Module):
    """A matrix that nobody says the meaning of."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


def test_by_its_shape_and_what_it_says() -> None:
    mixed = nn.Sequential(
        OthersLinear(16, 24), nn.ReLU(), Table(24, 24), InFront(24, 32), nn.Linear(32, 20)
    )
    plan = pp.plan(mixed, config=SIGNATURE)
    bound = {site.name: (site.channels, site.fan_in) for site in plan.role(Role.BOUND)}
    assert bound == {"0": (24, 16), "3": (32, 24), "4": (20, 32)}
    assert plan.summary() == "Sequential: 3 layers, 3 bound; 76 bits"
    assert len(assert_round_trip(mixed, PASSPORT, torch.randn(4, 16), config=SIGNATURE)) == 3
    with pytest.raises(NoNormalization, match="neither normalization nor"):
        pp.plan(nn.Sequential(Table(24, 24)), config=SIGNATURE)


class Recurrent(nn.Module):
    """A text model without norms: nearly all of its weights are plain parameters."""

    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 12)
        self.recurrent = kind(12, 16, num_layers=2, batch_first=True, **options)
        self.head = nn.Linear(self.recurrent(torch.zeros(1, 1, 12))[0].shape[-1], 20)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.recurrent(self.embedding(tokens))[0])


class Attention(nn.Module):
    """Attention whose keys and values are of another width, and a cell."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.crossed = nn.MultiheadAttention(16, 2, kdim=12, vdim=10, batch_first=True)
        self.cell = nn.GRUCell(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x)[0]
        x = x + self.crossed(x, x[..., :12], x[..., :10])[0]
        return self.cell(x.flatten(0, 1))


class Stack(nn.Module):
    """A matrix for each kind of edge or each expert, in the two orders that there are."""

    def __init__(self, inputs: int, outputs: int, kinds: int, inputs_first: bool) -> None:
        super().__init__()
        self.in_channels, self.out_channels = inputs, outputs
        self.inputs_first = inputs_first
        shape = (kinds, inputs, outputs) if inputs_first else (kinds, outputs, inputs)
        self.weight = nn.Parameter(torch.randn(shape) / inputs**0.5)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.inputs_first else self.weight.mT
        return torch.einsum("ni,kio->no", x, weight)


class Relations(nn.Module):
    """A network for graphs with several kinds of edges."""

    def __init__(self, **options: int) -> None:
        super().__init__()
        self.first = pyg.RGCNConv(16, 24, num_relations=3, **options)
        self.last = pyg.FastRGCNConv(24, 8, num_relations=3)

    def forward(self, x: Tensor) -> Tensor:
        edges = torch.arange(48).view(2, 24) % 16
        kinds = torch.arange(24) % 3
        return self.last(self.first(x, edges, kinds).relu(), edges, kinds)


PLAIN_PARAMETERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], int]] = {
    "LSTM": (lambda: Recurrent(nn.LSTM), lambda: torch.arange(24).view(4, 6) % 20, 276),
    "LSTM both ways, projected": (
        lambda: Recurrent(nn.LSTM, bidirectional=True, proj_size=10),
        lambda: torch.arange(24).view(4, 6) % 20,
        572,
    ),
    "GRU": (lambda: Recurrent(nn.GRU), lambda: torch.arange(24).view(4, 6) % 20, 212),
    "attention": (Attention, lambda: torch.randn(4, 6, 16), 200),
    # Rows are counted by the second dimension of a stack, whichever that is.
    "stacks": (
        lambda: nn.Sequential(Stack(16, 24, 3, True), nn.ReLU(), Stack(24, 20, 2, False)),
        lambda: torch.randn(8, 16),
        16 + 20,
    ),
    "RGCN": (Relations, lambda: torch.randn(16, 16), 16 + 24),
    "RGCN, two bases": (lambda: Relations(num_bases=2), lambda: torch.randn(16, 16), 16 + 24),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", PLAIN_PARAMETERS)
def test_matrices_that_are_plain_parameters(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, inputs, bits = PLAIN_PARAMETERS[name]
    model, x = make(), inputs()
    assert pp.plan(model, config=SIGNATURE).bits == bits
    assert_round_trip(model, PASSPORT, x, config=SIGNATURE)
    pp.passportize(model, PASSPORT, config=SIGNATURE)
    embedding = pp.embed_signature(model, calibration=[x])
    assert embedding.after == bits
    pp.joint_loss(model.train(), x, None, lambda out, _: out.square().mean()).total.backward()
    claim = pp.save_claim(model, tmp_path / "claim")
    pp.unpassportize(model)
    assert pp.verify(model.state_dict(), PASSPORT, claim).matched == bits


def _pruned(layer: nn.Module) -> nn.Module:
    prune.random_unstructured(layer, "weight", 0.2)
    with torch.no_grad():
        for hook in layer._forward_pre_hooks.values():
            hook(layer, ())
    return layer


COMPUTED = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "pruned": _pruned,
}


@pytest.mark.parametrize("name", COMPUTED)
def test_computed_matrices(name: str, tmp_path: Path) -> None:
    """Vocoders have weight norm everywhere, and no other norm."""
    torch.manual_seed(0)
    change = COMPUTED[name]
    model = nn.Sequential(
        change(nn.Conv1d(4, 32, 3)), nn.LeakyReLU(), change(nn.ConvTranspose1d(32, 24, 4))
    )
    inputs = torch.randn(4, 4, 12)
    assert len(assert_round_trip(model, PASSPORT, inputs, config=SIGNATURE)) == 2
    pp.passportize(model, PASSPORT, config=SIGNATURE)
    assert pp.embed_signature(model).after == 56
    claim = pp.save_claim(model, tmp_path / "claim")
    pp.unpassportize(model)
    assert pp.verify(model.state_dict(), PASSPORT, claim).matched == 56


@pytest.mark.parametrize("lazy", [lambda: nn.LazyLinear(8), lambda: pyg.Linear(-1, 8)])
def test_lazy_layers_are_named(lazy: Callable[[], nn.Module]) -> None:
    with pytest.raises(UninitializedModule, match=r"0: .*Linear has not seen data yet"):
        pp.plan(nn.Sequential(lazy()), config=SIGNATURE)


def test_forward_on_the_object_of_a_linear_layer() -> None:
    """It may do what it likes: bits are read from the weight."""
    layer = nn.Linear(16, 32)
    layer.forward = lambda x: F.linear(x, layer.weight, layer.bias) * 2
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(32, 16))
    assert len(assert_round_trip(model, PASSPORT, torch.randn(4, 16), config=SIGNATURE)) == 2
