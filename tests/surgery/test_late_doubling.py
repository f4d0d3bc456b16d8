"""Where the batch is doubled: at the first bound part of the model, or at the root."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import passportize as pp
from passportize.layers.model import passport_layers, switch_of
from passportize.release.audit import is_clean
from tests.support.small_joint import Small, batch, gradients, small, statistics


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_late_doubling_runs_the_trunk_once(reentrant: bool | None) -> None:
    config = pp.PassportConfig.keyed(private_fraction=0.5)
    late, reference = (small(config, kind, where="body*") for kind in (reentrant, None))
    assert switch_of(late).entry == "body"
    assert set(passport_layers(late)) == {"body.1", "body.4"}
    x, y = batch()
    seen = []
    late.stem.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    loss = pp.joint_loss(late, x, y, F.cross_entropy)
    loss.total.backward()
    assert seen == [16]

    def rest(h: Tensor) -> Tensor:
        return reference.head(reference.norm(reference.project(reference.body(h).mean((2, 3)))))

    trunk = reference.stem(x)
    expected = F.cross_entropy(rest(trunk), y)
    with pp.branch(reference, "private"):
        weight = config.private_weight * math.sqrt(8 / 16)
        expected = expected + weight * F.cross_entropy(rest(trunk[:8]), y[:8])
    for layer in passport_layers(reference).values():
        expected = expected + layer.private_factors()[2]
    expected.backward()
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-12)
    for key, gradient in gradients(late).items():
        theirs = gradients(reference)[key]
        torch.testing.assert_close(gradient, theirs, rtol=1e-9, atol=1e-11, msg=key)
    if reentrant is None:
        for key, value in statistics(late).items():
            torch.testing.assert_close(value, statistics(reference)[key], rtol=1e-12, atol=1e-13)
    switch_of(late).saved = True
    pp.unpassportize(late)
    assert is_clean(late)


class Skipping(Small):
    """What comes before the body is used behind it, so samples cannot be appended in between."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        inner = self.body(x)
        return self.head(self.norm(self.project(inner.mean((2, 3))))) + x.mean((1, 2, 3))[:, None]


class WithHead(Small):
    """In training there is a second output, from before the body."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return (out, self.stem(x).mean((2, 3))) if self.training else out


class Repeating(Small):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return super().forward(x[:, :3]) + self.body(x).mean()


@pytest.mark.parametrize("kind", [Skipping, WithHead, Repeating])
def test_without_a_single_late_entry_the_root_doubles(kind: type[Small]) -> None:
    model = small(None, where="body*", kind=kind)
    assert switch_of(model).entry == ""
    assert "stem.1" in passport_layers(model)
