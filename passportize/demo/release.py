"""The demo's middle steps: what the owner commits to, and the plain model that is released."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from passportize.data.images import ImageData
from passportize.demo.recipe import build_model
from passportize.demo.story import Story
from passportize.layers.model import branch
from passportize.passport.passport import Passport
from passportize.release.audit import is_clean
from passportize.release.checkpoint import load_weights, save_weights
from passportize.release.claim import Claim
from passportize.surgery.surgery import unpassportize

__all__ = ["commit", "strip"]


def commit(story: Story, passport: Passport, claim: Claim, paths: dict[str, str]) -> None:
    """Third step: what the owner publishes before release."""
    story.step("The claim, which the owner keeps and commits to before release")
    story.say(f"claim file:  {paths['claim']} (no secret in it)")
    story.say(f"publish:     claim {claim.digest()}")
    story.say(f"             passport {passport.commitment()}")


def strip(
    story: Story, model: nn.Module, data: ImageData, seed: int, paths: dict[str, str]
) -> None:
    """Fourth step: the plain model, and that nothing of passportize is left."""
    story.step("Stripped to the plain timm model that is released")
    images = data.test_images
    with torch.no_grad(), branch(model.eval(), "public"):
        before = model(images)
    unpassportize(model)
    with torch.no_grad():
        after = model(images)
    save_weights(paths["weights"], model.state_dict())
    fresh = build_model(seed + 1, data.classes)
    fresh.load_state_dict(load_weights(paths["weights"]), strict=True)
    with torch.no_grad():
        loaded = fresh.eval()(images)
    story.say(f"released weights: {paths['weights']}, loaded strictly by timm.create_model")
    story.state("its output is that of the public branch, bit for bit", _same(before, after))
    story.state("so is that of a timm model that loaded the file", _same(before, loaded))
    story.state(
        "no class, key, buffer or hook of passportize is left",
        bool(is_clean(model)) and _alike(model, fresh),
    )


def _same(one: Tensor, other: Tensor) -> bool:
    return bool(torch.equal(one, other))


def _alike(model: nn.Module, plain: nn.Module) -> bool:
    """Whether a model has the modules, keys and hooks of one that was never touched."""

    def structure(root: nn.Module) -> list[object]:
        return [
            (name, type(module), sorted(vars(module)), len(module._forward_hooks))
            for name, module in root.named_modules()
        ]

    return structure(model) == structure(plain) and list(model.state_dict()) == list(
        plain.state_dict()
    )
