"""Norms behind LoRA are bound to the layer that was there before, whoever wrote the adapter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import passportize as pp
from passportize.utils.foreign import merged_later

RANK, WIDTH = 12, 64


class Adapted(nn.Module):
    """As modules beside the frozen layer; the last summand is the one found first."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, WIDTH).requires_grad_(False)
        self.lora_A = nn.Linear(32, RANK, bias=False)
        self.lora_B = nn.Linear(RANK, WIDTH, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.lora_B(self.lora_A(x))


class ByParameters(nn.Linear):
    """As parameters of the layer itself."""

    def __init__(self) -> None:
        super().__init__(32, WIDTH)
        self.weight.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(RANK, 32))
        self.lora_B = nn.Parameter(torch.zeros(WIDTH, RANK))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.lora_A), self.lora_B) + super().forward(x)


class Named(nn.Module):
    """Several adapters by name, and other words for them."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(32, WIDTH).requires_grad_(False)
        self.lora_down = nn.ModuleDict({"task": nn.Linear(32, RANK, bias=False)})
        self.lora_up = nn.ModuleDict({"task": nn.Linear(RANK, WIDTH, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.lora_up["task"](self.lora_down["task"](x))


KINDS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "modules": (Adapted, "0.linear.weight"),
    "parameters": (ByParameters, "0.weight"),
    "named": (Named, "0.base.weight"),
}


@pytest.mark.parametrize("example", [True, False], ids=["example", "no example"])
@pytest.mark.parametrize("name", KINDS)
def test_bound_to_the_base(name: str, example: bool) -> None:
    make, weight = KINDS[name]
    model = nn.Sequential(make(), nn.LayerNorm(WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4))
    inputs = torch.randn(8, 32) if example else None
    (site,) = pp.plan(model, example_inputs=inputs).sites
    assert not site.bits and f"{weight} is frozen" in site.reason
    (site,) = pp.plan(model, example_inputs=inputs, include_frozen=True).sites
    assert [part.weight for part in site.anchor.parts] == [weight]
    plain = nn.Sequential(make(), nn.ReLU(), nn.Linear(WIDTH, 16))
    sites = pp.plan(plain, config=pp.PassportConfig.signature()).sites
    assert [s.anchor.parts[0].weight for s in sites if s.bits] == ["2.weight"]
    assert len(sites) == 2


def test_other_names_stay() -> None:
    model = nn.Module()
    model.lora_model = nn.Sequential(nn.Linear(4, 4))
    model.lora_bank = nn.Linear(4, 4)
    assert merged_later(model) == set()
