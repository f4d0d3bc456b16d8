"""A Trainer of transformers with a passport, and the mixin for Trainers of one's own.

    trainer = PassportTrainer(model=model, args=args, train_dataset=data,
                              protection=Protection(passport, claim="acme.claim.safetensors"))

While ``train`` runs, ``compute_loss`` is called twice in each step: with the batch through the
public branch, and with the first samples of it through the private branch, which leaves nothing
behind. What is saved, pushed, evaluated and predicted is the plain model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from passportize.errors import CheckpointError, InvalidArgument, MissingExtra
from passportize.integrations.branch_state import part_state
from passportize.integrations.protection import Protection
from passportize.layers.model import is_passportized, switch_of
from passportize.release.checkpoint import host_state_dict
from passportize.release.claim import Claim
from passportize.release.notice import Notice
from passportize.release.weights_digest import weights_digest
from passportize.surgery.surgery import unpassportize
from passportize.training.loss import passport_parameters
from passportize.training.step import joint_step
from passportize.utils.frozen import frozen_random_state
from passportize.utils.trees import map_tensors

try:
    from transformers import Trainer
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
except ImportError:
    raise MissingExtra(
        "transformers with its Trainer is not installed (it needs accelerate, too); run "
        "pip install 'passportize[transformers]'"
    ) from None

__all__ = ["BRANCH_FILE", "PassportTrainer", "PassportTrainerMixin"]

BRANCH_FILE = "private_branch.safetensors"
"""File of a training checkpoint that holds the private branch. No secret is in it."""

_EXAMPLES = 8


class PassportTrainerMixin:
    """What makes a Trainer train its model with a passport: put it in front of the Trainer's class.

    ``train`` passportizes the model before the optimizer is made, and leaves the plain model, the
    same object, whether it ends well or by an exception. The claim is on the weights that
    ``save_model`` would write then: the best ones with ``load_best_model_at_end``, else the last.

    In the training logs: ``passport_signature`` (percent of the bits that are in),
    ``passport_sign_loss``, ``passport_public_loss``, ``passport_private_loss``.

    Args:
        *args: Those of the Trainer.
        protection: Passport, settings, and where to write the claim.
        notice: What the model card of ``push_to_hub`` is to say of the mark; nothing by default.
        **kwargs: Those of the Trainer.

    Attributes:
        claim: The claim, once it is written. Only in the process of rank 0.
        notice: As given; may be set once there is a claim.
    """

    def __init__(
        self, *args: Any, protection: Protection, notice: Notice | None = None, **kwargs: Any
    ) -> None:
        if not isinstance(protection, Protection):
            raise InvalidArgument(
                f"protection={type(protection).__name__}: give Protection(passport, ...)"
            )
        self.claim: Claim | None = None
        self._protection = protection
        self.notice = notice
        super().__init__(*args, **kwargs)

    # Attributes of the Trainer.
    model: Any
    args: Any
    optimizer: Any
    accelerator: Any

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer, with a passport.

        Raises:
            InvalidArgument: The run cannot be one with a passport; the message says why.
            SurgeryError: The model cannot be passportized.
            CheckpointError, WrongPassport: The checkpoint to resume has no private branch, or that
                of another run.
            ClaimError: The claim cannot be written.

        Warns:
            MissingBitsWarning: The weights do not carry the signature.
        """
        _refuse_run(self)
        network, protection = self.model, self._protection
        primary: bool = self.is_world_process_zero()  # type: ignore[attr-defined]
        protection.put_in(network, primary, self._example())
        try:
            _check_optimizer(self.optimizer, network)
            result = super().train(*args, **kwargs)  # type: ignore[misc]
            if protection.path is not None:
                if primary:
                    self.claim = protection.claim_on(network)
                switch_of(network).saved = True
        except BaseException:
            # Whoever sees the exception knows that there is no claim.
            switch_of(network).saved = True
            raise
        finally:
            unpassportize(network)
        return result

    def _example(self) -> Any:
        """A few samples as the model is called with them; no random number is drawn for it."""
        if self._protection.example_inputs is not None:
            return None
        with frozen_random_state(cuda=True):
            batch = next(iter(self.get_train_dataloader()))  # type: ignore[attr-defined]
            inputs: Mapping[str, Any] = self._prepare_inputs(batch)  # type: ignore[attr-defined]
        labels: list[str] = getattr(self, "label_names", None) or ["labels"]
        return {
            name: map_tensors(lambda item: item[:_EXAMPLES] if item.dim() else item, value)
            for name, value in inputs.items()
            if name not in labels
        }

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
        **kwargs: Any,
    ) -> Any:
        """The joint loss in training, the Trainer's own in evaluation."""
        own = super().compute_loss  # type: ignore[misc]
        if not (model.training and is_passportized(self.model)):
            return own(model, inputs, return_outputs, num_items_in_batch, **kwargs)
        outputs: list[Any] = []

        def step(samples: Any) -> Tensor:
            if not return_outputs:
                loss: Tensor = own(model, samples, False, num_items_in_batch, **kwargs)
                return loss
            loss, output = own(model, samples, True, num_items_in_batch, **kwargs)
            outputs.append(output)
            return loss

        def private_step(samples: Any) -> Tensor:
            # Past DDP, which counts its forward passes; and a mean over these samples alone.
            loss: Tensor = own(self.model, samples, False, None, **kwargs)
            return loss

        loss = joint_step(self.model, step, inputs, private_step=private_step)
        assert loss is not None
        # Such a public loss counts a part of the batch that gradients are accumulated over.
        parts = 1
        if self._is_scaled(num_items_in_batch):
            parts = self.current_gradient_accumulation_steps  # type: ignore[attr-defined]
        self._protection.meter.add(replace(loss, public=loss.public * parts))
        total = loss.public + (loss.total - loss.public) / parts
        return (total, outputs[0]) if return_outputs else total

    def _is_scaled(self, num_items_in_batch: Any) -> bool:
        """As the Trainer decides whether it divides the loss by the steps of an accumulation."""
        told = getattr(self, "loss_is_scaled_for_ga", None)
        if told is not None:
            return bool(told)
        takes: bool = self.model_accepts_loss_kwargs  # type: ignore[attr-defined]
        function = self.compute_loss_func  # type: ignore[attr-defined]
        return (takes and num_items_in_batch is not None) or function is not None

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As the Trainer; training logs say what became of the bits."""
        if "loss" in logs and is_passportized(self.model):
            metrics = self._protection.metrics(self.model)
            logs = {**logs, **{f"passport_{name}": value for name, value in metrics.items()}}
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    # --- files -----------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The plain model; in a training checkpoint the private branch beside it."""
        if not is_passportized(self.model):
            super()._save(output_dir, state_dict=state_dict)  # type: ignore[misc]
            return
        state = self.model.state_dict() if state_dict is None else state_dict
        plain, branch = part_state(self.model, state)
        super()._save(output_dir, state_dict=plain)  # type: ignore[misc]
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save and folder.name.startswith(PREFIX_CHECKPOINT_DIR):
            tensors = {name: value.contiguous() for name, value in branch["tensors"].items()}
            told = {"record": branch["record"], "weights": weights_digest(plain)}
            save_file(tensors, folder / BRANCH_FILE, told)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        self._restore(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()  # type: ignore[misc]
        self._restore(self.state.best_model_checkpoint)  # type: ignore[attr-defined]

    def _restore(self, folder: str) -> None:
        """The private branch of a checkpoint, once all of its weights are loaded."""
        model = self.model
        if not is_passportized(model):
            return
        branch = _branch_in(Path(folder))
        self._protection.restore(model, branch)
        kept = (branch or {}).get("weights")
        if kept and weights_digest(host_state_dict(model)) != kept:
            # Trainers load by name, and transformers 5 saves some models under older names.
            if hasattr(type(model), "from_pretrained"):
                whole = type(model).from_pretrained(folder).state_dict()
                model.load_state_dict(whole, strict=False)
                self._protection.restore(model, branch)
            if weights_digest(host_state_dict(model)) != kept:
                raise CheckpointError(
                    f"{folder}: transformers did not load all of its weights; give the model that "
                    "it was made of, or load it yourself and start a new run"
                )

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """As the Trainer, and the owner's notice below it."""
        super().create_model_card(*args, **kwargs)  # type: ignore[misc]
        card = Path(self.args.output_dir) / "README.md"
        if self.notice is not None and self.is_world_process_zero():  # type: ignore[attr-defined]
            text = card.read_text(encoding="utf-8")
            card.write_text(f"{text.rstrip()}\n\n{self.notice.to_markdown()}", encoding="utf-8")


class PassportTrainer(PassportTrainerMixin, Trainer):  # type: ignore[misc]
    """transformers' ``Trainer`` with a passport, see :class:`PassportTrainerMixin`."""


def _branch_in(folder: Path) -> dict[str, Any] | None:
    """What a training checkpoint holds of the private branch; None where it was made without."""
    file = folder / BRANCH_FILE
    if not file.is_file():
        return None
    with safe_open(file, framework="pt") as opened:
        told = opened.metadata() or {}
    return {"record": "", **told, "tensors": load_file(file)}


def _refuse_run(trainer: Any) -> None:
    """Look for what cannot work, before anything is changed."""
    args = trainer.args
    reason = ""
    if trainer.model_init is not None:
        reason = "model_init= makes a new model in train(); give model="
    elif args.n_gpu > 1:
        reason = "DataParallel copies the model in every step; start one process for each GPU"
    elif trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        reason = "FSDP and DeepSpeed replace the weights that carry the bits; use DDP"
    elif args.torch_compile:
        reason = "torch_compile=True: a step through one branch after the other is not compiled"
    elif args.push_to_hub and "checkpoint" in str(getattr(args.hub_strategy, "value", "")):
        reason = (
            f"hub_strategy={args.hub_strategy.value!r} would push training checkpoints, which hold "
            "the private branch; use 'every_save' or 'end'"
        )
    if reason:
        raise InvalidArgument(f"this run cannot be one with a passport: {reason}")


def _check_optimizer(optimizer: Any, network: nn.Module) -> None:
    """An optimizer from outside has to know what only the private branch learns."""
    if optimizer is None:
        return
    known = {id(item) for group in optimizer.param_groups for item in group["params"]}
    if any(id(item) not in known for item in passport_parameters(network)):
        raise InvalidArgument(
            "the optimizer was made before the passport's branch, which has parameters of its own "
            "with this preset; let the Trainer make the optimizer"
        )
