"""Projection on data: what a thief with inputs of their own can do to a mark put in with inputs.

A mark at the least change of what layers compute would lie where the inputs are small. So a thief
who has inputs leaves in every weight only what these inputs use: the leading directions of their
second moment, or the weight fitted anew to its own outputs with a penalty on its length, which
weakens each direction by ``S (S + k)^-1``. Whatever else the weight holds in these directions, for
inputs that the thief has not got, is lost as well. A thief who has read
:mod:`passportize.signature.metric` puts noise of the thief's own where the mark lies, or where no
input is, which costs a network least, and covers marks that were trained in as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from passportize.attacks.attack import Attacked, Means, register_attack
from passportize.attacks.descent import unlabelled
from passportize.errors import InvalidArgument
from passportize.signature.metric import Metric
from passportize.training.refitting import change_by_inputs, rows_with_moments

__all__ = ["drown_weights", "project_weights", "unused_shares"]


@torch.no_grad()
def project_weights(
    model: nn.Module,
    inputs: Iterable[Any],
    energy: float | None = 0.9999,
    shrink: float | None = None,
    shortest_row: int = 64,
) -> list[str]:
    """Leave of every conv and linear weight what some inputs use, in place.

    Args:
        model: A plain model.
        inputs: Batches, as :func:`passportize.embed_signature` takes them for ``calibration``.
        energy: Share of the inputs' second moment that the directions kept must hold.
        shrink: Instead: fit each weight to its own outputs with this penalty on its length, in
            units of the mean of the second moment. Then give ``energy=None``.
        shortest_row: Weights with shorter rows stay as they are.

    Returns:
        Names of the weights that were projected.

    Raises:
        InvalidArgument: Neither or both of ``energy`` and ``shrink``, or one out of its range.
    """
    if (energy is None) == (shrink is None):
        raise InvalidArgument("project_weights: give energy=, or shrink= and energy=None")
    if energy is not None and not 0 < energy <= 1:
        raise InvalidArgument(f"project_weights: energy={energy!r} must lie in (0, 1]")
    if shrink is not None and not 0 < shrink < float("inf"):
        raise InvalidArgument(f"project_weights: shrink={shrink!r} must be a number above 0")

    def project(rows: Tensor, moment: Tensor) -> Tensor:
        values, basis = torch.linalg.eigh(moment)
        kept = _kept(values.clamp_min(0), energy, shrink)
        projected: Tensor = ((rows @ basis) * kept) @ basis.T
        return projected

    return change_by_inputs(model, inputs, project, shortest_row)


def _kept(values: Tensor, energy: float | None, shrink: float | None) -> Tensor:
    """Factor of each direction; ``values`` in ascending order."""
    if shrink is not None:
        return values / (values + shrink * values.mean() + 1e-300)
    assert energy is not None
    return (values.cumsum(0) > (1 - energy) * values.sum()).double()


@torch.no_grad()
def unused_shares(
    model: nn.Module, inputs: Iterable[Any], shortest_row: int = 64
) -> dict[str, Tensor]:
    """How much of each row lies where some inputs are small, by the name of the weight.

    ``log (w' (S + k)^-1 w)`` less its mean over the rows of the weight, with ``k`` a hundredth of
    the mean of ``S``: a row with a mark that hides well has more of it than its neighbours.

    Args:
        model: A plain model.
        inputs: As for :func:`project_weights`.
        shortest_row: Weights with shorter rows are left out.
    """
    shares = {}
    for name, rows, moments in rows_with_moments(model, inputs, shortest_row):
        found = []
        for own, moment in zip(rows, moments, strict=True):
            size = moment.diagonal().mean().clamp_min(1e-300)
            full = moment / size + 0.01 * torch.eye(len(moment), dtype=moment.dtype, device="cpu")
            unit = own / own.norm(dim=1, keepdim=True).clamp_min(1e-300)
            found.append((unit * torch.linalg.solve(full, unit.T).T).sum(1).clamp_min(1e-300).log())
        whole = torch.cat(found)
        shares[name] = whole - whole.mean()
    return shares


@torch.no_grad()
def drown_weights(
    model: nn.Module,
    inputs: Iterable[Any],
    share: float = 0.03,
    level: float = 0.3,
    generator: torch.Generator | None = None,
    shortest_row: int = 64,
) -> list[str]:
    """Add noise to every conv and linear weight where marks of trained models lie, in place.

    Args:
        model: A plain model.
        inputs: As for :func:`project_weights`.
        share: What the noise makes of the second moment of what each weight computes.
        level: Size of the inputs in the directions that get most of it, in units of the mean. Far
            below 1, where layers hardly use what they have, it is all but free.
        generator: Source of the noise, on the CPU.
        shortest_row: Weights with shorter rows stay as they are.

    Returns:
        Names of the weights that were changed.

    Raises:
        InvalidArgument: ``share`` or ``level`` is not above 0.
    """
    if not (0 < share < float("inf") and 0 < level < float("inf")):
        raise InvalidArgument(f"drown_weights: share={share!r}, level={level!r} must be above 0")

    def drown(rows: Tensor, moment: Tensor) -> Tensor:
        metric = Metric(moment)
        noise = torch.randn(rows.shape, generator=generator, dtype=rows.dtype)
        noise, _ = metric.parts(noise, level)
        size = metric.output(noise)
        return rows + noise * (share * metric.output(rows) / size) ** 0.5 if size > 0 else rows

    return change_by_inputs(model, inputs, drown, shortest_row)


def _attacked(attack: str, model: nn.Module, done: list[str]) -> Attacked:
    if not done:
        raise InvalidArgument(
            f"{attack}: {type(model).__name__} has no weight with rows of 64 entries or more"
        )
    return Attacked(figures={"weights": len(done)})


@register_attack(
    "projection",
    kind="removal",
    needs=("inputs",),
    source="this library",
    expected="the network goes before the mark does",
)
def _attack(
    model: nn.Module, means: Means, *, energy: float = 0.9999, shrink: float = 0.0
) -> Attacked:
    """Of every weight is left what the thief's inputs use; with shrink= fitted anew to them."""
    inputs = unlabelled(means, "projection")
    done = project_weights(model, inputs, energy=None if shrink else energy, shrink=shrink or None)
    return _attacked("projection", model, done)


@register_attack(
    "drown",
    kind="removal",
    needs=("inputs",),
    source="this library",
    expected="marks fade, mostly with the network; for nothing where it uses few directions",
)
def _drown(model: nn.Module, means: Means, *, share: float = 0.03, level: float = 0.3) -> Attacked:
    """Noise where marks of trained models lie, by the thief's inputs."""
    generator = torch.Generator().manual_seed(means.seed)
    done = drown_weights(model, unlabelled(means, "drown"), share, level, generator)
    return _attacked("drown", model, done)
