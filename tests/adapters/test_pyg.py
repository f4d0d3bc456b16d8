"""Norms of PyTorch Geometric: private forward, round trip, arguments, what is named as skipped."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from tests.support.round_trip import ModelSnapshot, assert_round_trip, assert_same_bits, is_host_key

with warnings.catch_warnings():
    # PyG's own use of torch.jit.script.
    warnings.simplefilter("ignore", DeprecationWarning)
    import torch_geometric.nn as pyg

import passportize as pp
from passportize.errors import BranchMisuse
from passportize.layers.layer import PassportLayer
from passportize.layers.private_branch import Branch
from passportize.layers.registry import registered_norms
from passportize.layers.switch import Pass, Switch
from passportize.signature.site import Role, Site
from passportize.surgery.branches import put_in_branch, take_out_branch
from passportize.surgery.probing import probe

CHANNELS, NODES, TYPES = 24, 30, 3
BATCH = torch.arange(4).repeat_interleave(torch.tensor([12, 5, 12, 1]))
KINDS = torch.arange(NODES) % TYPES
POINTER = torch.tensor([0, 8, 20, 30])


@dataclass(frozen=True)
class Case:
    """A norm, and the further arguments of its forward."""

    build: Callable[[], nn.Module]
    args: tuple[object, ...] = ()


CASES = {
    "LayerNorm graph": Case(lambda: pyg.LayerNorm(CHANNELS)),
    "LayerNorm graph batch": Case(lambda: pyg.LayerNorm(CHANNELS), (BATCH,)),
    "LayerNorm graph batch size": Case(lambda: pyg.LayerNorm(CHANNELS), (BATCH, 4)),
    "LayerNorm graph plain": Case(lambda: pyg.LayerNorm(CHANNELS, affine=False), (BATCH,)),
    "LayerNorm node": Case(lambda: pyg.LayerNorm(CHANNELS, mode="node"), (BATCH, 4)),
    "LayerNorm node plain": Case(lambda: pyg.LayerNorm(CHANNELS, affine=False, mode="node")),
    "GraphNorm": Case(lambda: pyg.GraphNorm(CHANNELS)),
    "GraphNorm batch": Case(lambda: pyg.GraphNorm(CHANNELS), (BATCH, 4)),
    "InstanceNorm": Case(lambda: pyg.InstanceNorm(CHANNELS, affine=True)),
    "InstanceNorm batch": Case(lambda: pyg.InstanceNorm(CHANNELS, affine=True), (BATCH,)),
    "InstanceNorm plain": Case(lambda: pyg.InstanceNorm(CHANNELS), (BATCH, 4)),
    "InstanceNorm tracked": Case(
        lambda: pyg.InstanceNorm(CHANNELS, affine=True, track_running_stats=True), (BATCH, 4)
    ),
    "InstanceNorm tracked, no batch": Case(
        lambda: pyg.InstanceNorm(CHANNELS, track_running_stats=True)
    ),
    "HeteroBatchNorm": Case(lambda: pyg.HeteroBatchNorm(CHANNELS, TYPES), (KINDS,)),
    "HeteroBatchNorm cumulative": Case(
        lambda: pyg.HeteroBatchNorm(CHANNELS, TYPES, momentum=None), (KINDS,)
    ),
    "HeteroBatchNorm plain": Case(
        lambda: pyg.HeteroBatchNorm(CHANNELS, TYPES, affine=False), (KINDS,)
    ),
    "HeteroBatchNorm untracked": Case(
        lambda: pyg.HeteroBatchNorm(CHANNELS, TYPES, track_running_stats=False), (KINDS,)
    ),
    "HeteroLayerNorm": Case(lambda: pyg.HeteroLayerNorm(CHANNELS, TYPES), (KINDS,)),
    "HeteroLayerNorm pointer": Case(lambda: pyg.HeteroLayerNorm(CHANNELS, TYPES), (None, POINTER)),
    "HeteroLayerNorm plain": Case(
        lambda: pyg.HeteroLayerNorm(CHANNELS, TYPES, affine=False), (KINDS,)
    ),
}
ALL = [pytest.param(case, id=name) for name, case in CASES.items()]
PASSPORT = pp.Passport.generate(owner="Graphs", secret=bytes(range(32)), date="2026-01-01")
SEPARATE = pp.PassportConfig.keyed(passes="separate")


def randomised(norm: nn.Module) -> nn.Module:
    """Factors and statistics that no two channels share."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in [*norm.named_parameters(), *norm.named_buffers()]:
            if tensor.is_floating_point():
                values = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(values.abs() + 0.5 if "running_var" in name else values)
    return norm


def nodes(seed: int = 5) -> Tensor:
    return torch.randn(NODES, CHANNELS, generator=torch.Generator().manual_seed(seed)) * 2 + 0.3


def passportized(norm: nn.Module) -> PassportLayer:
    """A two-branch layer without an anchor: the private factors are the public ones."""
    site = Site(name="norm", layer_type="", role=Role.STATISTICS)
    put_in_branch(norm, Branch(site, SEPARATE, Switch(SEPARATE), norm))
    assert isinstance(norm, PassportLayer)
    return norm


def test_every_affine_norm_of_pyg_is_covered():
    adapted = {norm.__name__ for norm in registered_norms() if "torch_geometric" in norm.__module__}
    assert adapted == {name.split()[0] for name in CASES}
    inner = {"BatchNorm", "DiffGroupNorm"}  # hold a torch BatchNorm1d, which is the site
    skipped = {"GraphSizeNorm", "MeanSubtractionNorm", "MessageNorm", "PairNorm"}
    from torch_geometric.nn import norm

    assert adapted | inner | skipped == set(norm.__all__)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("case", ALL)
def test_private_norm_with_the_hosts_factors_is_the_hosts_forward(case, training):
    host = randomised(case.build()).train(training)
    layer = passportized(copy.deepcopy(host))
    before = {name: buffer.clone() for name, buffer in layer.named_buffers() if is_host_key(name)}
    for step in range(2):
        x = nodes(step)
        expected = host(x, *case.args)
        scale, shift, _ = layer.private_factors(x)
        assert_same_bits(expected, layer.private_norm(x, scale, shift, *case.args), "private")
    for name, buffer in host.named_buffers():
        assert_same_bits(buffer, getattr(layer.passport, name), name)
        assert_same_bits(before[name], getattr(layer, name), f"public {name}")


@pytest.mark.parametrize("case", ALL)
def test_other_factors_reach_the_output_and_gradients_flow(case):
    layer = passportized(randomised(case.build()))
    public = getattr(layer, "weight", None)
    shape = (CHANNELS,) if public is None else tuple(public.shape)
    scale = (torch.rand(shape) + 0.5).requires_grad_()
    shift = torch.zeros(shape)
    x = nodes().requires_grad_()
    one = layer.private_norm(x, scale, shift, *case.args)
    two = layer.private_norm(x, 3 * scale, shift, *case.args)
    torch.testing.assert_close(two, 3 * one)
    one.square().sum().backward()
    assert bool(scale.grad.any()) and bool(x.grad.isfinite().all())


@pytest.mark.parametrize("case", ALL)
def test_swap_copy_file_and_swap_back(case):
    norm = randomised(case.build()).eval()
    before = ModelSnapshot.of(norm)
    expected = norm(nodes(), *case.args)
    layer = passportized(norm)
    assert_same_bits(expected, layer(nodes(), *case.args), "public")
    twin = copy.deepcopy(layer)
    assert_same_bits(expected, twin(nodes(), *case.args), "copy")
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert type(loaded) is type(layer)
    assert_same_bits(expected, loaded(nodes(), *case.args), "file")
    take_out_branch(layer)
    before.check(norm)


class NormNet(nn.Module):
    """A linear layer, the norm, a linear layer; PyG's linear layer is none of torch's."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.lin = pyg.Linear(16, CHANNELS)
        self.norm = norm
        self.head = pyg.Linear(CHANNELS, 5)

    def forward(self, x: Tensor, *args: object) -> Tensor:
        return self.head(self.norm(self.lin(x), *args).relu())


@pytest.mark.parametrize("preset", ["keyed", "paper", "signature"])
@pytest.mark.parametrize("case", ALL)
def test_round_trip(case, preset):
    torch.manual_seed(0)
    model = NormNet(randomised(case.build()))
    config = getattr(pp.PassportConfig, preset)(passes="separate")
    x = torch.randn(NODES, 16, generator=torch.Generator().manual_seed(1))
    inputs = (x, *case.args)
    planned = pp.plan(model, example_inputs=inputs)
    (site,) = planned.sites
    assert site.role is Role.BOUND and site.channels == CHANNELS
    assert site.anchor.parts[0].weight == "lin.weight"
    assert_round_trip(model, PASSPORT, inputs, config=config)


def test_packed_nodes_of_both_branches_are_refused():
    layer = passportized(pyg.GraphNorm(CHANNELS))
    switch = layer.passport.switch
    switch.mode = switch.current = Pass.JOINT
    switch.active, switch.public_rows, switch.private_rows = True, 24, 6
    with pytest.raises(BranchMisuse, match="passes='separate'"):
        layer(nodes(), BATCH)


def test_norms_with_nothing_to_bind_are_named():
    model = nn.ModuleDict(
        {
            "lin": nn.Linear(16, CHANNELS),
            "norm": nn.BatchNorm1d(CHANNELS),
            "pair": pyg.PairNorm(),
            "size": pyg.GraphSizeNorm(),
            "mean": pyg.MeanSubtractionNorm(),
            "message": pyg.MessageNorm(learn_scale=True),
            "wrapped": pyg.BatchNorm(CHANNELS, allow_single_element=True),
            "groups": pyg.DiffGroupNorm(CHANNELS, groups=4),
        }
    )

    def run(model: nn.ModuleDict) -> Tensor:
        x = model["norm"](model["lin"](torch.ones(NODES, 16)))
        x = model["mean"](model["size"](model["pair"](x)))
        return model["groups"](model["wrapped"](model["message"](x, x)))

    sites = {site.name: site for site in pp.plan(model, example_inputs=run).sites}
    assert set(sites) == {
        "norm", "pair", "size", "mean", "message", "wrapped.module", "groups.norm"
    }  # fmt: skip
    for name in ("pair", "size", "mean"):
        assert sites[name].role is Role.SKIPPED and "nothing to bind" in sites[name].reason
    assert "one scale for all channels" in sites["message"].reason
    assert sites["norm"].role is Role.BOUND
    # Four groups of all channels side by side: no weight has that width.
    assert sites["groups.norm"].role is Role.STATISTICS


@pytest.mark.parametrize("norm", ["graph_norm", "layer_norm", "instance_norm", "batch_norm"])
@pytest.mark.parametrize("kind", ["gin", "gcn"])
def test_norms_inside_library_models(kind, norm):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from tests.support.point_cloud_pyg import GraphNet, knn_edges

    torch.manual_seed(0)
    model = GraphNet(kind, 5, norm)
    pos = torch.randn(48, 3)
    batch = torch.arange(3).repeat_interleave(16)
    inputs = (pos, knn_edges(pos, batch, 4), batch)
    model.eval()(*inputs)  # the head of the GCN is lazy
    layers = assert_round_trip(model.train(), PASSPORT, inputs, config=SEPARATE)
    assert len(layers) == (6 if kind == "gin" else 3)


class SingleRowNet(nn.Module):
    """One graph in, one row out of the pooling: what ``allow_single_element`` is made for."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(16, CHANNELS)
        self.norm = pyg.BatchNorm(CHANNELS, allow_single_element=True)
        randomised(self.norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.lin(x))


def single_row_net(passes: str) -> SingleRowNet:
    torch.manual_seed(2)
    model = SingleRowNet()
    config = pp.PassportConfig.keyed(passes=passes, private_fraction=1.0)
    pp.passportize(model, PASSPORT, config=config, example_inputs=torch.zeros(4, 16))
    branch = model.norm.module.passport
    with torch.no_grad():
        branch.running_mean.add_(1.0)
        branch.running_var.mul_(4.0)
    return model


@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_each_branch_normalises_a_single_row_with_its_own_statistics(rows, training):
    model = single_row_net("separate").train(training)
    x = torch.randn(rows, 16)
    layer = model.norm.module
    z = model.lin(x)
    at_rest = rows == 1 or not training
    with pp.branch(model, "private"):
        private = model(x)
    scale, shift, _ = layer.private_factors()
    branch = layer.passport
    expected = nn.functional.batch_norm(
        z,
        branch.running_mean if at_rest else None,
        branch.running_var if at_rest else None,
        scale,
        shift,
        training=not at_rest,
    )
    torch.testing.assert_close(private, expected)
    twin = copy.deepcopy(model)
    public = model(x)
    pp.unpassportize(twin)
    assert type(twin.norm) is pyg.BatchNorm
    twin.load_state_dict({k: v for k, v in model.state_dict().items() if is_host_key(k)})
    assert_same_bits(twin(x), public, "public")
    assert model.norm.module.training is training


@pytest.mark.parametrize("rows", [1, 2])
def test_single_rows_in_joint_training_bring_their_sign_loss(rows):
    results = []
    x = torch.randn(rows, 16, generator=torch.Generator().manual_seed(4))
    for passes in ("doubled", "separate"):
        model = single_row_net(passes).train()
        loss = pp.joint_loss(model, x, None, lambda output, _: output.square().mean())
        assert float(loss.sign.detach()) > 0
        loss.total.backward()
        statistics = {k: v for k, v in model.state_dict().items() if "running" in k}
        results.append((loss.output, loss.private_output, model.lin.weight.grad, statistics))
    for one, other in zip(*(result[:3] for result in results), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(results[0][3], results[1][3])


def test_single_element_wrappers_survive_files_and_come_back_exactly():
    torch.manual_seed(2)
    model = SingleRowNet()
    before = ModelSnapshot.of(model)
    assert_round_trip(model, PASSPORT, torch.randn(6, 16))
    before.check(model)
    model = single_row_net("separate").eval()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert type(loaded.norm) is type(model.norm)
    assert_same_bits(model(torch.ones(1, 16)), loaded(torch.ones(1, 16)), "file")


def test_probe_sees_the_plain_wrapper():
    model = single_row_net("separate")
    report = probe(model, torch.randn(1, 16))
    assert report.silent == () and report.private_differs
