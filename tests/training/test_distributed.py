"""Several processes: DDP, synchronised batch norm, FSDP2. Gloo on the CPU, float64."""

from __future__ import annotations

import copy
import hashlib

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import passportize as pp
from passportize.adapters.sync_batch_norm import synchronised_batch_norm
from passportize.errors import EmbeddingFailed, WrappedModel
from passportize.layers.model import passport_layers
from passportize.signature.vectors import SignVectors, Vectors
from passportize.training.criterion import JointCriterion
from passportize.training.loss import train_jointly
from tests.support.gloo import run_ranks

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="no gloo in this torch"
)

PASSPORT = pp.Passport.generate("Many", date="2026-01-01", secret=bytes(range(32)))
CONFIGS = {
    "keyed": pp.PassportConfig.keyed(private_fraction=0.5),
    "paper": pp.PassportConfig.paper(private_every=2),
}


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm = norm(outputs) if norm is nn.BatchNorm2d else norm(2, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class Net(nn.Module):
    def __init__(self, norm: type[nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.layer1 = Block(3, 8, norm)
        self.layer2 = Block(8, 8, norm)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer2(self.layer1(x)).mean((2, 3)))


def net(config: pp.PassportConfig, norm: type[nn.Module] = nn.BatchNorm2d, seed: int = 0) -> Net:
    torch.manual_seed(seed)
    model = Net(norm).double()
    return pp.passportize(model, PASSPORT, config=config, example_inputs=example()).train()


def example() -> Tensor:
    return torch.zeros(2, 3, 6, 6, dtype=torch.float64)


def data(step: int, rows: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    x = torch.randn(rows, 3, 6, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (rows,), generator=generator)


def digest(model: nn.Module) -> str:
    tensors = [tensor.detach().numpy().tobytes() for tensor in model.state_dict().values()]
    return hashlib.sha256(b"".join(tensors)).hexdigest()


def share(step: int, rank: int, ranks: int) -> tuple[Tensor, Tensor]:
    x, y = data(step)
    return x[rank::ranks], y[rank::ranks]


def vectors_of(side: Vectors) -> Tensor:
    return side.codes if isinstance(side, SignVectors) else side.values


def train_under_ddp(rank: int, ranks: int, name: str, settings: dict) -> dict[str, list]:
    """Three steps of two micro-batches; every rank starts from other weights, as in train.py."""
    broadcast: list[Tensor] = []
    original = dist._broadcast_coalesced

    def watch(group: object, tensors: list[Tensor], *args: object) -> None:
        broadcast.extend(tensors)
        original(group, tensors, *args)

    dist._broadcast_coalesced = watch
    model = train_jointly(net(CONFIGS[name], seed=rank))
    inner, wrapped = model, DistributedDataParallel(model, **settings)
    criterion = JointCriterion(nn.CrossEntropyLoss())
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
    digests, signatures = [], []
    for step in range(3):
        x, y = share(step, rank, ranks)
        half = len(x) // 2
        if settings.get("static_graph"):
            criterion(wrapped(x), y).backward()
        else:
            with wrapped.no_sync():
                criterion(wrapped(x[:half]), y[:half]).backward()
            criterion(wrapped(x[half:]), y[half:]).backward()
        optimizer.step()
        optimizer.zero_grad()
        parameters = [p.detach().numpy().tobytes() for p in wrapped.parameters()]
        digests.append(hashlib.sha256(b"".join(parameters)).hexdigest())
        signatures.append(pp.signature_accuracy(inner))
    secrets = {
        tensor.numpy().tobytes()
        for layer in passport_layers(inner).values()
        for tensor in (
            layer.passport.secret.bits,
            *(vectors_of(side) for side in layer.passport.secret.sides),
        )
    }
    sent = {tensor.detach().float().numpy().tobytes() for tensor in broadcast}
    return {"digests": digests, "signatures": signatures, "leak": sorted(map(len, secrets & sent))}


@pytest.mark.parametrize(
    ("ranks", "name", "settings"),
    [
        (2, "keyed", {}),
        (3, "paper", {}),
        (2, "paper", {"find_unused_parameters": True}),
        (2, "keyed", {"static_graph": True}),
    ],
)
def test_ddp_keeps_the_processes_equal_and_sends_no_secret(
    ranks: int, name: str, settings: dict
) -> None:
    results = run_ranks(ranks, train_under_ddp, ranks, name, settings)
    assert len({tuple(result["digests"]) for result in results}) == 1
    assert len(set(results[0]["digests"])) == 3
    assert len({tuple(result["signatures"]) for result in results}) == 1
    assert not any(result["leak"] for result in results)


def norm_on_a_rank(rank: int, ranks: int) -> dict[str, np.ndarray]:
    model = net(CONFIGS["keyed"])
    layer = model.layer2.norm
    x, weights = sync_data()
    x = x[rank * 4 : rank * 4 + 4].requires_grad_()
    scale, shift, _ = layer.private_factors()
    out = synchronised_batch_norm(layer, layer.passport, x, scale, shift, dist.group.WORLD)
    (out * weights[rank * 4 : rank * 4 + 4]).sum().backward()
    found = {
        "out": out.detach(),
        "input": x.grad,
        "scale": layer.weight.grad,
        "shift": layer.bias.grad,
        "mean": layer.passport.running_mean,
        "var": layer.passport.running_var,
    }
    # As arrays: a tensor in a message shares the memory of a process that will be gone.
    return {name: tensor.numpy() for name, tensor in found.items()}


def sync_data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(8, 8, 5, 5, generator=generator, dtype=torch.float64) * 3 + 1
    return x, torch.randn(8, 8, 5, 5, generator=generator, dtype=torch.float64)


def test_synchronised_batch_norm_is_batch_norm_over_all_processes() -> None:
    """A double of nn.SyncBatchNorm, which refuses the CPU."""
    results = [
        {name: torch.from_numpy(array) for name, array in found.items()}
        for found in run_ranks(2, norm_on_a_rank, 2)
    ]
    model = net(CONFIGS["keyed"])
    layer = model.layer2.norm
    x, weights = sync_data()
    x.requires_grad_()
    scale, shift, _ = layer.private_factors()
    out = layer.private_norm(x, scale, shift)
    (out * weights).sum().backward()
    close = {"rtol": 1e-11, "atol": 1e-12}
    torch.testing.assert_close(torch.cat([r["out"] for r in results]), out.detach(), **close)
    torch.testing.assert_close(torch.cat([r["input"] for r in results]), x.grad, **close)
    for key, whole in (("scale", layer.weight.grad), ("shift", layer.bias.grad)):
        torch.testing.assert_close(sum(r[key] for r in results), whole, **close)
    for result in results:
        torch.testing.assert_close(result["mean"], layer.passport.running_mean, **close)
        torch.testing.assert_close(result["var"], layer.passport.running_var, **close)


def train_sharded(rank: int, ranks: int, name: str) -> dict[str, object]:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard

    model = train_jointly(net(CONFIGS[name], norm=nn.GroupNorm))
    for part in (model.layer1, model.layer2, model):
        fully_shard(part)
    criterion = JointCriterion(nn.CrossEntropyLoss())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(3):
        x, y = share(step, rank, ranks)
        criterion(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    full = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    message = ""
    late = fully_shard(Net(nn.GroupNorm).double())
    try:
        pp.passportize(late, PASSPORT, example_inputs=example())
    except WrappedModel as error:
        message = str(error)
    embedding = ""
    try:
        pp.embed_signature(model)
    except EmbeddingFailed as error:
        embedding = str(error)
    state = {k: v.numpy() for k, v in full.items()}
    return {"state": state, "message": message, "embedding": embedding}


@pytest.mark.parametrize("name", CONFIGS)
def test_fsdp2_after_passportize_is_exact_and_before_is_refused(name: str) -> None:
    results = run_ranks(2, train_sharded, 2, name)
    reference = [train_jointly(net(CONFIGS[name], norm=nn.GroupNorm)) for _ in range(2)]
    reference[1] = copy.deepcopy(reference[0])
    train_jointly(reference[1])
    criterion = JointCriterion(nn.CrossEntropyLoss())
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in reference]
    for step in range(3):
        for rank, model in enumerate(reference):
            x, y = share(step, rank, 2)
            criterion(model(x), y).backward()
        for pair in zip(*(m.parameters() for m in reference), strict=True):
            mean = (pair[0].grad + pair[1].grad) / 2
            for parameter in pair:
                parameter.grad = mean.clone()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    state = results[0]["state"]
    expected = reference[0].state_dict()
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        ours = torch.from_numpy(state[key])
        torch.testing.assert_close(ours, value, rtol=1e-12, atol=1e-13, msg=key)
    plain = Net(nn.GroupNorm).double()
    plain.load_state_dict(pp.host_state_dict(expected))
    assert all("fully_shard" in result["message"] for result in results)
    assert all("before fully_shard" in result["embedding"] for result in results)
