"""timm's training tasks with a private branch (timm 1.0.23 and later)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import timm.task
from torch import nn

from passportize.errors import CheckpointError, InvalidArgument
from passportize.integrations.branch_state import TASK_KEY, join_state, part_state
from passportize.layers.joint_forward import JointOutput
from passportize.layers.model import is_passportized, switch_of
from passportize.training.criterion import JointCriterion, JointMeter
from passportize.training.loss import loss_of, private_targets

if TYPE_CHECKING:
    from timm.task import ClassificationTask, TrainingTask
else:
    TrainingTask = timm.task.TrainingTask
    ClassificationTask = timm.task.ClassificationTask

__all__ = ["PassportTask", "PassportTaskMixin", "passport_task_class"]


class PassportTaskMixin(TrainingTask):  # type: ignore[misc]
    """What makes a task of timm train a passportized model: put it in front of the task's class.

    The public branch goes through the task's own forward; private loss and sign loss are added to
    its ``"loss"``. The private tensors travel in the checkpoint's ``task_state``, so that its
    ``state_dict`` is that of the plain model (timm 1.0.27 and later).

    Attributes:
        meter: Running means of the parts of the loss; one for each task unless the class has one.
    """

    meter: JointMeter | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.meter = self.meter or JointMeter()
        criterion = getattr(self, "criterion", None)
        if criterion is not None and not isinstance(criterion, JointCriterion):
            self.criterion = JointCriterion(criterion, meter=self.meter)

    def forward(self, input: Any, target: Any) -> dict[str, Any]:
        """As timm's task, with the joint loss.

        Args:
            input: Batch of the model.
            target: Its targets.

        Returns:
            The task's dictionary; ``"loss"`` is the joint loss, ``"output"`` that of the public
            branch.
        """
        if hasattr(self, "teacher"):
            return self._distil(input, target)
        result: dict[str, Any] = super().forward(input, target)
        if isinstance(result.get("output"), JointOutput):
            result["output"] = result["output"].public
        return result

    def _distil(self, input: Any, target: Any) -> dict[str, Any]:
        """The distillation terms see the public branch; the private one learns the labels."""
        taken: list[JointOutput] = []

        def public(module: nn.Module, args: Any, output: Any) -> Any:
            # A trial of the joint pass wants it whole.
            if not isinstance(output, JointOutput) or switch_of(module).rehearsing:
                return None
            taken.append(output)
            return output.public

        handle = self._model().register_forward_hook(public)
        try:
            result: dict[str, Any] = super().forward(input, target)
        finally:
            handle.remove()
        if not taken:
            return result
        joint = taken[0]
        joint = joint._replace(public=_logits(joint.public), private=_logits(joint.private))
        criterion = self.criterion
        base = criterion.criterion if isinstance(criterion, JointCriterion) else criterion
        weight = getattr(self, "task_loss_weight", 1.0)
        parts = loss_of(joint, target, base)
        assert self.meter is not None
        self.meter.add(parts, private_targets(joint, target))
        result["loss"] = result["loss"] + parts.sign
        if parts.private is not None:
            result["loss"] = result["loss"] + weight * joint.private_weight * parts.private
        return result

    def _model(self) -> nn.Module:
        for name in ("trainable_module", "student", "model"):
            module = self._modules.get(name)
            if isinstance(module, nn.Module):
                return module
        raise InvalidArgument(f"{type(self).__name__}: no trainable module was found in it")

    def get_checkpoint_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The plain state dict, and the private tensors under ``task_state``."""
        state: dict[str, Any] = super().get_checkpoint_state(*args, **kwargs)
        for model_key, task_key in (
            ("state_dict", "task_state"),
            ("state_dict_ema", "task_state_ema"),
        ):
            model = self._passportized(ema=model_key.endswith("ema"))
            if model_key in state and model is not None:
                plain, branch = part_state(model, state[model_key])
                state[model_key] = plain
                state[task_key] = {**state.get(task_key, {}), TASK_KEY: branch}
        return state

    def load_checkpoint_state(
        self,
        state_dict: dict[str, Any],
        task_state: dict[str, Any] | None = None,
        ema: bool = False,
        strict: bool = True,
    ) -> None:
        """Load both, see :meth:`get_checkpoint_state`.

        Raises:
            CheckpointError: The checkpoint was made without passports, or is damaged.
            WrongPassport: It was made with another passport.
        """
        others = dict(task_state or {})
        branch = others.pop(TASK_KEY, None)
        model = self._passportized(ema=ema)
        if model is not None:
            state_dict = join_state(model, state_dict, branch)
        elif branch is not None:
            raise CheckpointError(
                "the checkpoint to resume holds a private branch, but the model is plain; start "
                "it with the passport"
            )
        super().load_checkpoint_state(state_dict, others or None, ema=ema, strict=strict)

    def _passportized(self, ema: bool) -> nn.Module | None:
        from timm.utils.model import unwrap_model

        model = self.get_eval_model(ema=ema)
        plain: nn.Module | None = None if model is None else unwrap_model(model)
        return plain if plain is not None and is_passportized(plain) else None


class PassportTask(PassportTaskMixin, ClassificationTask):  # type: ignore[misc]
    """timm's ``ClassificationTask`` for a passportized model.

    Make the model with :func:`passportize.integrations.timm.prepare` first; the arguments are
    those of timm's task.
    """


def passport_task_class(task_class: type[Any], meter: JointMeter) -> type[Any]:
    """A task class of timm with the private branch in front; the same name, so logs read alike.

    Args:
        task_class: The class.
        meter: Shared by its tasks.
    """
    return type(
        task_class.__name__,
        (PassportTaskMixin, task_class),
        {"__module__": task_class.__module__, "__doc__": task_class.__doc__, "meter": meter},
    )


def _logits(output: Any) -> Any:
    """The main head's, where a model has a head for the teacher too."""
    return output[0] if isinstance(output, (tuple, list)) else output
