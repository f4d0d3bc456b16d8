"""A user's program under a strict type checker; the last line of each wrong call is refused."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import passportize as pp


def protect(model: nn.Module, passport: pp.Passport, images: Tensor, labels: Tensor) -> pp.Claim:
    """Train for one step and claim."""
    planned: pp.Plan = pp.plan(model)
    bits: int = planned.bits
    marked: nn.Module = pp.passportize(model, passport, config=pp.PassportConfig.keyed())
    embedding: pp.Embedding = pp.embed_signature(marked)
    loss: pp.JointLoss = pp.joint_loss(marked, images, labels, nn.functional.cross_entropy)
    torch.autograd.backward(loss.total)
    assert embedding.after == bits
    return pp.save_claim(marked, "acme.claim.safetensors")


def judge(suspect: nn.Module, passport: pp.Passport, claim: pp.Claim) -> bool | None:
    """The verdict alone."""
    verdict: pp.Verdict = pp.verify(suspect, passport, claim)
    return verdict.accepted
