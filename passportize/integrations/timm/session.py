"""One run of a training script under the launcher: what is hooked, and what came of it."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from passportize.config import PassportConfig
from passportize.errors import InvalidArgument, TrainingError, UnsupportedNorm
from passportize.integrations.patches import Patches
from passportize.integrations.timm.final_claim import claim_run
from passportize.integrations.timm.pictures import calibration_pictures
from passportize.layers.joint_forward import JointOutput
from passportize.layers.model import passport_layers, switch_of
from passportize.layers.wrappers import refuse_wrapped
from passportize.passport.passport import Passport
from passportize.surgery.surgery import passportize
from passportize.training.criterion import JointCriterion, JointMeter
from passportize.training.embedding import embed_signature
from passportize.training.loss import signature_accuracy, train_jointly

__all__ = ["Session", "prepare"]

_logger = logging.getLogger("passportize.timm")


def prepare(
    model: nn.Module,
    passport: Passport,
    *,
    config: PassportConfig | None = None,
    where: str | Sequence[str] | None = None,
    embed: bool = True,
    calibration: Iterable[Any] | None = None,
    **settings: Any,
) -> nn.Module:
    """Passportize a model of timm for a training script, in place, and train it jointly.

    Call it after all conversions (``to``, channels-last, SyncBN, checkpointing) and before
    ``create_optimizer_v2``, resume, EMA, compile and DDP.

    Args:
        model: The model.
        passport: The owner's passport.
        config: A preset; keyed by default.
        where: Which norms to bind.
        embed: Put the signature into the weights at once
            (:func:`passportize.embed_signature`).
        calibration: Batches of inputs to do so with, for weights that are trained already and are
            to compute what they did.
        **settings: Further arguments of :func:`passportize.passportize`.

    Returns:
        The same model; in training it returns a
        :class:`~passportize.layers.joint_forward.JointOutput`.

    Raises:
        SurgeryError: The model cannot be passportized.
        InvalidArgument: It is a trainable module for feature distillation.
    """
    if type(model).__name__ == "FeatureDistillationTrainableModule":
        raise InvalidArgument(
            "feature distillation cannot be trained with a passport: it calls parts of the model "
            "one by one, past its private branch; use logit or token distillation"
        )
    refuse_wrapped(model)
    for name, module in model.named_modules():
        if type(module).__name__ == "SplitBatchNorm2d":
            raise UnsupportedNorm(
                f"{name}: SplitBatchNorm2d sends fixed shares of the batch through other "
                "statistics, which the rows of the private branch would shift; leave --split-bn out"
            )
    passportize(model, passport, config=config, where=where, **settings)
    if embed:
        done = embed_signature(model, calibration=calibration)
        if _primary():
            _logger.info("Passport: %s", done)
    return train_jointly(model)


class Session:
    """The hooks of one run.

    Args:
        passport: The owner's passport.
        config: The formulation.
        where: Glob patterns of the norms to bind; None for all.
        embed: Whether the signature is put into the weights before the training starts.
        calibration: A folder of pictures to do so with.
        arguments: Of the script, which say how it prepares pictures.

    Attributes:
        model: The passportized model once there is one.
    """

    def __init__(
        self,
        passport: Passport,
        config: PassportConfig,
        where: Sequence[str] | None = None,
        embed: bool = True,
        calibration: Path | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self.model: nn.Module | None = None
        self.meter = JointMeter()
        self._passport = passport
        self._config = config
        self._where = where
        self._embed = embed
        self._calibration = calibration
        self._arguments = arguments
        self._savers: list[Any] = []

    def install(self, patches: Patches) -> None:
        """Replace names of timm and torch; ``patches`` puts them back."""
        import timm.loss
        import timm.optim
        import timm.utils

        for package, name, wrap in (
            (timm.optim, "create_optimizer_v2", self._create_optimizer),
            (timm.utils, "update_summary", self._update_summary),
        ):
            original = getattr(package, name)
            wrapped = wrap(original)
            # Also where it is defined: scripts import it from either place.
            for module in (package, sys.modules[original.__module__]):
                patches.replace(module, name, wrapped)
        saver = timm.utils.CheckpointSaver
        patches.replace(saver, "__init__", self._created_saver(saver.__init__))
        self._install_losses(patches, timm.loss)
        self._install_tasks(patches)

    def _create_optimizer(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def create_optimizer_v2(model_or_params: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(model_or_params, nn.Module) and self.model is None:
                self.model = prepare(
                    model_or_params,
                    self._passport,
                    config=self._config,
                    where=self._where,
                    embed=self._embed,
                    calibration=None
                    if self._calibration is None
                    else calibration_pictures(self._calibration, model_or_params, self._arguments),
                )
                if _primary():
                    layers = [layer.passport for layer in passport_layers(self.model).values()]
                    bound = [branch for branch in layers if branch.bound]
                    _logger.info(
                        "Passport of %s: %d bits in %d of %d layers, preset %s, commitment %s",
                        self._passport.owner,
                        sum(branch.site.bits for branch in bound),
                        len(bound),
                        len(layers),
                        self._config.formulation,
                        self._passport.commitment(),
                    )
            return original(model_or_params, *args, **kwargs)

        return create_optimizer_v2

    def _created_saver(self, original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)
        def created(saver: Any, *args: Any, **kwargs: Any) -> None:
            original(saver, *args, **kwargs)
            self._savers.append(saver)

        return created

    def _update_summary(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def update_summary(epoch: Any, train_metrics: Any, *args: Any, **kwargs: Any) -> Any:
            metrics = self.metrics()
            if metrics:
                train_metrics = {**train_metrics, **metrics}
                listed = "  ".join(f"{name} {value:.5g}" for name, value in metrics.items())
                _logger.info("Passport: epoch %s  %s", epoch, listed)
            return original(epoch, train_metrics, *args, **kwargs)

        return update_summary

    def metrics(self) -> dict[str, float]:
        """Signature accuracy in percent and means of the loss's parts since the last call."""
        if self.model is None:
            return {}
        means = self.meter.read()
        means.setdefault("sign_loss", float("nan"))
        if self._config.has_private_pass:
            # A column that is missing in one epoch would shift all others of the table.
            for name in ("private_loss", "private_top1"):
                means.setdefault(name, float("nan"))
        order = ("sign_loss", "public_loss", "private_loss", "private_top1")
        return {
            "signature": 100 * signature_accuracy(self.model),
            **{name: means[name] for name in order if name in means},
        }

    def _install_losses(self, patches: Patches, timm_losses: Any) -> None:
        """Criteria of torch and timm take joint outputs, for scripts that call them themselves."""
        classes = [
            kind
            for space in (torch.nn.modules.loss, timm_losses)
            for kind in vars(space).values()
            if isinstance(kind, type)
            and issubclass(kind, nn.Module)
            # Not what these modules import: nn.Linear is among it.
            and kind.__module__.startswith(space.__name__)
        ]
        for kind in dict.fromkeys(classes):
            # JsdCrossEntropy has a __call__ of its own and no forward.
            name = "__call__" if "__call__" in vars(kind) else "forward"
            if name in vars(kind):
                patches.replace(kind, name, _joint(vars(kind)[name], self.meter))

    def _install_tasks(self, patches: Patches) -> None:
        try:
            import timm.task
        except ImportError:
            return  # timm 1.0.22 and before
        from passportize.integrations.timm.task import passport_task_class

        base = timm.task.TrainingTask
        for name, kind in list(vars(timm.task).items()):
            if isinstance(kind, type) and issubclass(kind, base) and kind is not base:
                joint = passport_task_class(kind, self.meter)
                for module in (timm.task, sys.modules[kind.__module__]):
                    patches.replace(module, name, joint)

    def finish(self, claim: Path | None, claim_of: str = "best", ema: bool | None = None) -> None:
        """Check that the hook worked, and write the claim on the weights that will be released.

        Args:
            claim: Where to; None to write none.
            claim_of: Which checkpoint, ``"best"`` or ``"last"``.
            ema: On its averaged weights; None: if there are any.

        Raises:
            TrainingError: The script made its optimizer past the hook, or never trained.
            ClaimError, CheckpointError: The claim cannot be made or written.
        """
        if self.model is None:
            raise TrainingError(
                "the training script never called timm.optim.create_optimizer_v2(model, ...), so "
                "nothing was protected; put passportize.integrations.timm.prepare(model, passport) "
                "into the script instead, see docs/timm.md"
            )
        if not switch_of(self.model).trained:
            raise TrainingError(
                "the training script never called the model in training mode after its optimizer "
                "was made, so nothing was protected; see docs/timm.md for scripts that copy it"
            )
        if not _primary():
            return
        bits = sum(layer.passport.site.bits for layer in passport_layers(self.model).values())
        accuracy = 100 * signature_accuracy(self.model)
        _logger.info("Passport: %.2f %% of %d signature bits are embedded", accuracy, bits)
        if claim is not None:
            _logger.info("Passport: %s", claim_run(self.model, self._savers, claim, claim_of, ema))


def _joint(original: Callable[..., Any], meter: JointMeter) -> Callable[..., Any]:
    @functools.wraps(original)
    def forward(self: nn.Module, output: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(output, JointOutput):
            return original(self, output, *args, **kwargs)
        call = functools.partial(original, self)
        criterion = JointCriterion(call, getattr(self, "cross_entropy_loss", None), meter)
        return criterion(output, *args, **kwargs)

    return forward


def _primary() -> bool:
    return os.environ.get("RANK", "0") == "0"
