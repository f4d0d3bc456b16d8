"""What makes a brought branch have any factors that its maker wants: no data, no training.

With a bottleneck ``h(t) = W2 LeakyReLU(W1 t)`` and any passports with responses ``u`` and ``v``:

    W1 u = e1,  W1 v = e2  (pseudo-inverse),   W2 e1 = scale,  W2 e2 = shift

gives ``h(u) = scale`` and ``h(v) = shift``. Without one the responses are linear in the passports,
so least squares finds passports that come nearest. The signature is then ``sign(u)``: in both
schemes the claimant says what it was.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from passportize.errors import DegenerateSite
from passportize.schemes.brought import BroughtBranch, Factors
from passportize.surgery.branches import anchor_weights

__all__ = ["bottleneck_for", "solve_bottlenecks", "solve_passports"]

_EXACT = 0.01
"""Relative error of the factors that no accuracy notices."""


def bottleneck_for(
    name: str, answers: Tensor, wanted: Tensor, hidden: int
) -> tuple[Tensor, Tensor]:
    """Bottleneck weights ``[hidden, C]`` and ``[C, hidden]`` with h(u) = scale, h(v) = shift.

    Args:
        name: Of the site, for errors.
        answers: Its responses ``u`` and ``v``, ``[C, 2]``.
        wanted: Scale and shift, ``[C, 2]``.
        hidden: Hidden units.

    Raises:
        DegenerateSite: The bottleneck has fewer than two hidden units.
    """
    if hidden < 2:
        raise DegenerateSite(
            f"{name}: a bottleneck of one hidden unit cannot be solved for two sides; use "
            "PassportConfig.paper(bottleneck=1)"
        )
    first = torch.zeros(hidden, len(answers), dtype=torch.float64, device=answers.device)
    first[:2] = torch.linalg.pinv(answers.double())
    second = torch.zeros(len(answers), hidden, dtype=torch.float64, device=answers.device)
    second[:, :2] = wanted.double()
    return first.float(), second.float()


@torch.no_grad()
def solve_bottlenecks(branch: BroughtBranch, model: nn.Module, factors: Factors) -> BroughtBranch:
    """The same branch with bottlenecks that give these factors, and the signs of its responses.

    Raises:
        DegenerateSite: A bottleneck has fewer than two hidden units.
    """
    branch = branch.kept()
    assert branch.bottlenecks is not None
    signs = []
    for index, site in enumerate(branch.sites):
        answers = branch.responses(model, index)
        learned = dict(branch.bottlenecks[index].named_parameters())
        wanted = torch.stack(list(factors[site.name]), dim=1)
        sides = torch.stack([answers.gamma, answers.beta], dim=1)
        weights = bottleneck_for(site.name, sides, wanted, len(learned["0.weight"]))
        for name, weight in zip(("0.weight", "2.weight"), weights, strict=True):
            learned[name].copy_(weight)
        signs.append(torch.where(answers.gamma < 0, -1.0, 1.0))
    branch.bits.copy_(torch.cat(signs))
    return branch


@torch.no_grad()
def solve_passports(branch: BroughtBranch, model: nn.Module, factors: Factors) -> BroughtBranch:
    """The passports nearest to those of a branch that give these factors.

    Sites whose rows are too short for it are left out, where others remain: which layers have a
    passport is for the claimant to say.
    """
    passports, signs = [], []
    nearest: list[tuple[float, int]] = []
    for index, site in enumerate(branch.sites):
        solved, error = _solved(branch, index, model, torch.stack(list(factors[site.name]), dim=1))
        nearest.append((error, index))
        passports.append(solved)
    exact = [index for error, index in nearest if error < _EXACT] or [min(nearest)[1]]
    sites = [branch.sites[index] for index in exact]
    found = BroughtBranch(sites, [passports[index] for index in exact], None, torch.empty(0))
    for index in range(len(sites)):
        gamma = found.responses(model, index).gamma
        signs.append(torch.where(gamma < 0, -1.0, 1.0))
    found.bits = torch.cat(signs)
    return found.kept()


def _solved(
    branch: BroughtBranch, index: int, model: nn.Module, wanted: Tensor
) -> tuple[list[Tensor], float]:
    """Passports of one site by least squares, and how far their answers are from what is wanted."""
    anchor, passports = branch.sites[index].anchor, branch.passports[index]
    assert anchor is not None and isinstance(passports, nn.ParameterList)
    found, squares, start = [], 0.0, 0
    for rows, values in zip(anchor_weights(model, anchor.parts).rows(), passports, strict=True):
        groups = values.double().reshape(-1, *values.shape[-2:])
        matrix = rows.double().reshape(len(groups), -1, rows.shape[1])
        target = wanted[start : start + len(rows)].double().reshape(len(groups), -1, 2)
        start += len(rows)
        solved = groups + torch.linalg.pinv(matrix) @ (target - matrix @ groups)
        squares += float((target - matrix @ solved).square().sum())
        found.append(solved.reshape(values.shape).to(values.dtype))
    return found, (squares / max(float(wanted.double().square().sum()), 1e-300)) ** 0.5
