"""Units of recurrent layers change places, and signs where the step that bounds them is odd."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from passportize.alignment.tied_channels import find_tied_channels
from passportize.attacks.disguise import disguise
from tests.alignment.test_looked_through import alike_rows, built, drawn

INPUTS, WIDTH, UNITS = 160, 64, 32
X = torch.randn(3, 6, INPUTS, generator=drawn())

KINDS: dict[str, tuple[type[nn.RNNBase], dict[str, Any], bool]] = {
    "LSTM": (nn.LSTM, {}, True),
    "in both directions": (nn.LSTM, {"bidirectional": True}, True),
    "two layers": (nn.LSTM, {"num_layers": 2, "bidirectional": True}, True),
    "projected": (nn.LSTM, {"proj_size": 12}, True),
    "places first": (nn.LSTM, {"batch_first": False}, True),
    "GRU": (nn.GRU, {}, True),
    "without bias": (nn.GRU, {"bias": False}, True),
    "tanh": (nn.RNN, {}, True),
    "ReLU": (nn.RNN, {"nonlinearity": "relu"}, False),
}


class Recurrent(nn.Module):
    """A recurrent layer on a residual stream, of which outputs and last states are read."""

    def __init__(self, make: type[nn.RNNBase], options: dict[str, Any]) -> None:
        super().__init__()
        self.inward, self.norm = nn.Linear(INPUTS, WIDTH), nn.LayerNorm(WIDTH)
        self.layer = make(WIDTH, UNITS, **{"batch_first": True} | options)
        ways = 2 if self.layer.bidirectional else 1
        width = ways * (self.layer.proj_size or UNITS)
        self.outward, self.mlp = nn.Linear(width, WIDTH), nn.Linear(WIDTH, 96)
        self.last, self.head = nn.Linear(width, 96), nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        outputs, states = self.layer(self.norm(x))
        x = x + self.outward(outputs)
        state = states[0] if isinstance(states, tuple) else states
        ways = 2 if self.layer.bidirectional else 1
        last = self.last(state[-ways:].permute(1, 0, 2).flatten(1))
        if self.layer.batch_first:
            return self.head(torch.relu(self.mlp(x).mean(1) + last))
        return self.head(torch.relu(self.mlp(x).mean(0) + last))


@pytest.mark.parametrize("kind", KINDS)
def test_units_come_back(kind: str) -> None:
    make, options, odd = KINDS[kind]
    model = built(Recurrent, make, options)
    x = X if model.layer.batch_first else X.transpose(0, 1)  # type: ignore[union-attr]
    tied = find_tied_channels(model, x)
    rows = [a for a in tied.axes if a.role == "rows" and a.tensor.startswith("layer.weight_ih")]
    ways = 2 if model.layer.bidirectional else 1  # type: ignore[union-attr]
    assert len(rows) == ways * model.layer.num_layers  # type: ignore[union-attr,operator]
    suspect = copy.deepcopy(model)
    done = disguise(suspect, drawn(1), example_inputs=x)
    assert done.permuted and done.scaled
    with torch.no_grad():
        torch.testing.assert_close(suspect(x), model(x), atol=1e-4, rtol=1e-4)
    own, other = (m.state_dict()["layer.weight_hh_l0"] for m in (model, suspect))
    assert float((nn.functional.cosine_similarity(own, other).abs() > 0.9).float().mean()) < 0.2
    assert min(alike_rows(model, suspect, x, signed=True).values()) >= 0.95
    signs = tied.mirrors[rows[0].atoms]
    assert bool((signs != tied.mirrors[0]).any()) == odd


class Started(Recurrent):
    """States that do not start from zero are not followed."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        outputs, _ = self.layer(x, x.mean(1)[None, :, :UNITS].contiguous())
        return self.head(torch.relu(self.last(outputs).mean(1)))


class Twice(Recurrent):
    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        outputs = self.layer(x)[0] + self.layer(x.flip(1))[0]
        return self.head(torch.relu(self.last(outputs).mean(1)))


@pytest.mark.parametrize("model", [Started, Twice])
def test_what_is_not_followed_stays(model: type[Recurrent]) -> None:
    made = built(model, nn.GRU, {})
    tied = find_tied_channels(made, X)
    moving = {tied.axes[at].tensor for group in tied.groups for at, _ in group.places}
    assert not any(name.startswith("layer.") for name in moving)
    suspect = copy.deepcopy(made)
    disguise(suspect, drawn(1), example_inputs=X)
    with torch.no_grad():
        torch.testing.assert_close(suspect(X), made(X), atol=1e-4, rtol=1e-4)
