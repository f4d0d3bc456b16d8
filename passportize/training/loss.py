"""Joint training of both branches, and running one of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from passportize.errors import BranchLost, BranchMisuse, InvalidArgument
from passportize.layers.batch import unlike_rows
from passportize.layers.integrity import check_layers
from passportize.layers.joint_forward import JointOutput, RootHooks, private_share
from passportize.layers.model import _mode, passport_layers, switch_of
from passportize.layers.settling import settle_passes
from passportize.layers.switch import Pass, Switch
from passportize.utils.all_or_nothing import process_as_before
from passportize.utils.trees import arguments_of, call_model, map_tensors, tensors_in

__all__ = [
    "JointLoss",
    "check_hooks",
    "joint_loss",
    "loss_of",
    "passport_parameters",
    "private_targets",
    "signature_accuracy",
    "train_jointly",
]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JointLoss:
    """The parts of one joint training step. Call ``.total.backward()``.

    Attributes:
        total: ``public + private_weight * private + sign``, a scalar.
        public: Criterion on the public branch, a scalar.
        private: Criterion on the private branch, a scalar; None in steps without private pass.
        sign: Weighted sign loss that embeds the signature, a scalar.
        output: The public branch's output for the whole batch, as the plain model returns it.
        private_output: The private branch's output; None in steps without private pass.
    """

    total: Tensor
    public: Tensor
    private: Tensor | None
    sign: Tensor
    output: Any
    private_output: Any


@process_as_before
def joint_loss(
    model: nn.Module,
    inputs: Any,
    targets: Any,
    criterion: Callable[[Any, Any], Tensor],
) -> JointLoss:
    """One forward pass through both branches and the loss to minimise.

    >>> import torch
    >>> import passportize as pp
    >>> model = nn.Sequential(nn.Linear(8, 64), nn.LayerNorm(64), nn.Linear(64, 4))
    >>> inputs, labels = torch.randn(32, 8), torch.randint(4, (32,))
    >>> model = pp.passportize(model, pp.Passport.generate("Acme"), example_inputs=inputs)
    >>> loss = joint_loss(model, inputs, labels, nn.functional.cross_entropy)
    >>> loss.total.backward()
    >>> loss.output.shape, loss.private_output.shape  # a quarter of the batch is private, too
    (torch.Size([32, 4]), torch.Size([8, 4]))

    Args:
        model: A passportized model in training mode; may be wrapped in DDP or compiled.
        inputs: What the model is called with: a tensor ``[batch, ...]``, a tuple or list of
            positional or a mapping of keyword arguments.
        targets: Tensor ``[batch, ...]`` or a tree of such; the private branch gets the rows of the
            samples that it saw. Others (a list with an item for each image, boxes of all images)
            make the model take two passes from here on, and both branches get them whole.
        criterion: ``criterion(output, targets) -> scalar``.

    Raises:
        NotPassportized: The model carries no private branch.
        BranchMisuse: The model is in eval mode, or its batch cannot be told apart.
        PassportLocked: The private branch was loaded without its secret.
    """
    switch = switch_of(model)
    if not callable(criterion):
        raise InvalidArgument(f"criterion={criterion!r} must be callable")
    _settle_uncompiled(model, switch, inputs)
    _fit_to_targets(model, switch, inputs, targets)
    with _mode(model, Pass.JOINT):
        result = call_model(model, inputs)
    if not isinstance(result, JointOutput):
        check_hooks(model)
        raise BranchMisuse(
            "joint_loss: the model is in eval mode, where there is nothing to train; call "
            "model.train() first, or use branch(model, 'private') to evaluate the private branch"
        )
    return loss_of(result, targets, criterion)


def _settle_uncompiled(model: nn.Module, switch: Switch, inputs: Any) -> None:
    """Try the joint pass of a compiled model here: its hooks are part of what is compiled."""
    root = RootHooks.root_of(model)
    compiled = any(
        module._compiled_call_impl or "_orig_mod" in module._modules for module in model.modules()
    )
    if root is not None and root.training and compiled:
        settle_passes(root, switch, arguments_of(inputs))


def _fit_to_targets(model: nn.Module, switch: Switch, inputs: Any, targets: Any) -> None:
    """Take two passes where the targets of some samples cannot be told from the others'."""
    config = switch.config
    if not (switch.automatic and config.has_private_pass and config.passes == "doubled"):
        return
    rows = next((len(tensor) for tensor in tensors_in(inputs) if tensor.dim()), 0)
    if private_share(switch, rows) == rows:
        return
    found = unlike_rows(targets, rows)
    if found:
        _logger.info(
            "%s: the targets hold %s, which cannot be cut with the batch of %d; passes='separate'",
            type(model).__name__,
            found,
            rows,
        )
        switch.config = replace(config, passes="separate")


def loss_of(
    joint: JointOutput,
    targets: Any,
    criterion: Callable[[Any, Any], Tensor],
    private_criterion: Callable[[Any, Any], Tensor] | None = None,
) -> JointLoss:
    """The loss on what a model in joint training returned.

    Args:
        joint: Output of the model.
        targets: Tensor ``[batch, ...]`` or a nest of such.
        criterion: ``criterion(output, targets) -> scalar``.
        private_criterion: Another one for the private branch, where the first asks for the whole
            batch.

    Raises:
        InvalidArgument: The criterion returns no scalar.
    """
    public = criterion(joint.public, targets)
    if not isinstance(public, Tensor) or public.numel() != 1:
        shape = f"shape {tuple(public.shape)}" if isinstance(public, Tensor) else type(public)
        raise InvalidArgument(f"the criterion must return one number, not {shape}; take its mean")
    sign = joint.penalty.to(public.device)
    total = public + sign
    private = None
    if joint.private is not None:
        private = (private_criterion or criterion)(joint.private, private_targets(joint, targets))
        total = total + joint.private_weight * private
    return JointLoss(total, public, private, sign, joint.public, joint.private)


def private_targets(joint: JointOutput, targets: Any) -> Any:
    """The targets of the samples that went through the private branch.

    Raises:
        BranchMisuse: They cannot be told from those of the others.
    """
    rows = joint.private_rows
    if rows <= 0 or rows == joint.public_rows:
        return targets
    found = unlike_rows(targets, joint.public_rows)
    if found:
        raise BranchMisuse(
            f"the targets hold {found}, which cannot be cut with the batch of {joint.public_rows} "
            f"samples, of which {rows} went through the private branch; {joint.advice}"
        )
    return map_tensors(lambda tensor: tensor[:rows] if tensor.dim() else tensor, targets)


def train_jointly(model: nn.Module, joint: bool = True) -> nn.Module:
    """Make every forward pass in training mode a joint one, for loops that call the model.

    The model then returns a :class:`~passportize.layers.joint_forward.JointOutput` in training, for
    :class:`~passportize.training.criterion.JointCriterion`, and its plain output in eval mode.
    Copies of the model (an average of the weights, say) start without.

    Args:
        model: A passportized model; may be wrapped.
        joint: False ends it.

    Returns:
        The same model.

    Raises:
        NotPassportized: The model carries no private branch.
    """
    switch = switch_of(model)
    check_hooks(model)
    switch.mode = Pass.JOINT if joint else Pass.PUBLIC
    return model


def check_hooks(model: nn.Module) -> None:
    """Raise BranchLost if a passportized model has lost the hooks on its root."""
    if RootHooks.root_of(model) is None:
        raise BranchLost(
            f"{type(model).__name__} has two-branch layers, but not the hooks that run both "
            "branches: copies and files of a torch.fx.GraphModule drop them. Call "
            "unlock(model, passport), which puts them back"
        )


def passport_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Trainable parameters that belong to private branches and not to the host.

    Empty for ``keyed`` and ``signature``, where the private branch has nothing free. An optimizer
    made before ``passportize`` needs ``optimizer.add_param_group({"params": ...})`` with them.

    Raises:
        NotPassportized: The model carries no private branch.
    """
    switch_of(model)
    unique: dict[int, nn.Parameter] = {}
    for layer in passport_layers(model).values():
        for parameter in layer.passport.parameters():
            unique[id(parameter)] = parameter
    return list(unique.values())


def signature_accuracy(model: nn.Module) -> float:
    """Share of signature bits that the weights carry now, between 0 and 1.

    Raises:
        NotPassportized: The model carries no private branch.
        PassportLocked: The private branch was loaded without its secret.
        BranchLost: Layers were replaced, copied or patched after surgery.
    """
    layers = passport_layers(model)
    check_layers(model, switch_of(model))
    branches = [layer.passport for layer in layers.values()]
    total = sum(branch.site.bits for branch in branches)
    return sum(branch.matched() for branch in branches) / total if total else 0.0
