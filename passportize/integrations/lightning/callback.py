"""The callback: one ``fit`` with a passport, from the plain network to the plain network."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from passportize.errors import CheckpointError, MissingExtra, TrainingError
from passportize.integrations.branch_state import drop_private, part_state
from passportize.integrations.lightning.refusals import (
    name_of_network,
    refuse_run,
    refuse_weights_only,
)
from passportize.integrations.patches import Patches
from passportize.integrations.protection import Protection
from passportize.layers.model import switch_of
from passportize.passport.passport import Passport
from passportize.release.claim import Claim
from passportize.surgery.surgery import unpassportize
from passportize.training.loss import passport_parameters
from passportize.training.step import joint_step

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError:
        raise MissingExtra(
            "Lightning is not installed, which PassportCallback belongs to; run "
            "pip install 'passportize[lightning]'"
        ) from None

__all__ = ["PassportCallback"]

_logger = logging.getLogger(__name__)


class PassportCallback(Callback):  # type: ignore[misc]
    """Trains the network of a LightningModule with a passport, and writes the claim.

    When ``fit`` begins, before the optimizers are made, the network is passportized and its bits
    are put in. When it ends, whether well or by an exception, the network is plain again, the same
    object, and ``training_step`` is the user's own. Validation, test and prediction run the plain
    model. The ``state_dict`` of every checkpoint is that of the plain model; the private branch is
    in the callback's own state, so that ``fit(ckpt_path=...)`` goes on with it. No secret is in it.

    Logged at the end of each training epoch: ``passport_signature`` (percent of the bits that are
    in), ``passport_sign_loss``, ``passport_public_loss`` and ``passport_private_loss``.

    Args:
        passport: The owner's passport.
        network: Name of the attribute of the LightningModule that is to be marked; only needed
            where several have parameters.
        **settings: Those of :class:`~passportize.integrations.protection.Protection`: ``claim``,
            ``config``, ``where``, ``embed``, ``calibration``, ``example_inputs``,
            ``preprocessing``, ``overwrite``.

    Attributes:
        claim: The claim, once it is written: on the checkpoint that ``ModelCheckpoint`` calls best,
            or on the last weights where there is none. Only in the process of rank 0.

    Raises:
        InvalidArgument: An argument makes no sense.
    """

    def __init__(self, passport: Passport, *, network: str | None = None, **settings: Any) -> None:
        super().__init__()
        self.claim: Claim | None = None
        self._protection = Protection(passport, **settings)
        self._named = network
        self._run: _Run | None = None
        # Of a run that an exception ended: a checkpoint may still be made of it.
        self._kept: dict[str, Any] = {}

    # --- begin -----------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Passportize the network, if it is ``fit`` that begins.

        Raises:
            InvalidArgument: The run cannot be one with a passport; the message says why.
            SurgeryError: The network cannot be passportized.
            ClaimFileError: The claim could not be written at the end.
        """
        if stage != "fit":
            return
        refuse_run(trainer, pl_module)
        name = name_of_network(pl_module, self._named)
        network = pl_module.get_submodule(name)
        self._protection.put_in(network, trainer.is_global_zero and not trainer.fast_dev_run)
        self._kept = {}
        run = _Run(pl_module, name, network)
        try:
            if passport_parameters(network):
                refuse_weights_only(trainer)
            self._replace_step(run)
        except BaseException:
            run.end()
            raise
        self._run = run

    def _replace_step(self, run: _Run) -> None:
        module, original = run.module, run.module.training_step

        @functools.wraps(original)
        def training_step(batch: Any, *args: Any, **kwargs: Any) -> Any:
            returned: list[Any] = []

            def step(samples: Any) -> Tensor | None:
                returned.append(original(samples, *args, **kwargs))
                return _loss_in(returned[-1])

            def private_step(samples: Any) -> Tensor | None:
                with Patches() as silent:
                    silent.replace(module, "log", _log_nothing)
                    silent.replace(module, "log_dict", _log_nothing)
                    return step(samples)

            loss = joint_step(run.network, step, batch, within=module, private_step=private_step)
            if loss is None:
                return returned[0]
            self._protection.meter.add(loss)
            if isinstance(returned[0], Mapping):
                return {**returned[0], "loss": loss.total}
            return loss.total

        run.patches.replace(module, "training_step", training_step)

    # --- meanwhile -------------------------------------------------------------------------------

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log what became of the bits and of the parts of the loss."""
        if self._run is None or getattr(trainer, "barebones", False):
            return
        metrics = self._protection.metrics(self._run.network)
        pl_module.log_dict(
            {f"passport_{name}": value for name, value in metrics.items()}, sync_dist=True
        )

    def state_dict(self) -> dict[str, Any]:
        """The private branch for a checkpoint: tensors and what is marked. No secret is in it."""
        return self._kept if self._run is None else self._run.branch()

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Go on with the private branch of a checkpoint.

        Raises:
            CheckpointError: It was made without passports, or with other settings.
            WrongPassport: It was made with another passport.
        """
        if self._run is not None:
            branch = checkpoint.get("callbacks", {}).get(self.state_key)
            self._protection.restore(self._run.network, branch or None)

    # --- end -------------------------------------------------------------------------------------

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the claim.

        Raises:
            CheckpointError: The best checkpoint cannot be read.
            ClaimError: The claim cannot be made or written.

        Warns:
            MissingBitsWarning: The weights do not carry the signature.
        """
        run, protection = self._run, self._protection
        if run is None or protection.path is None:
            return
        switch_of(run.network).saved = True
        if trainer.fast_dev_run or not trainer.is_global_zero:
            return
        best = getattr(trainer.checkpoint_callback, "best_model_path", "")
        if not best:
            self.claim = protection.claim_on(run.network)
            return
        try:
            content = trainer.strategy.load_checkpoint(best)
        except Exception as error:
            raise CheckpointError(
                f"{best}: Lightning cannot load the checkpoint it has written ({error}), so there "
                "is no claim on it; keep plain values alone in save_hyperparameters, and claim its "
                "weights with passportize.save_claim"
            ) from error
        prefix = f"{run.name}."
        weights = {
            name.removeprefix(prefix): value
            for name, value in content["state_dict"].items()
            if name.startswith(prefix)
        }
        branch = content.get("callbacks", {}).get(self.state_key)
        self.claim = protection.claim_on(run.network, weights, branch or None)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Restore the plain network."""
        self._end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Restore the plain network, and keep the private branch for a checkpoint that follows."""
        if self._run is not None:
            self._kept = self._run.branch()
            switch_of(self._run.network).saved = True
            self._end()

    def _end(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.end()


class _Run:
    """One ``fit``: what was replaced for it.

    Args:
        module: The LightningModule.
        name: Name of the network in it.
        network: The network, passportized.
    """

    def __init__(self, module: Any, name: str, network: nn.Module) -> None:
        self.module = module
        self.name = name
        self.network = network
        self.patches = Patches()
        self._handles = [
            module.register_state_dict_post_hook(_without_private),
            module.register_load_state_dict_pre_hook(self._with_private),
        ]

    def branch(self) -> dict[str, Any]:
        """What a checkpoint holds of the private branch."""
        return part_state(self.network, self.network.state_dict())[1]

    def end(self) -> None:
        """Put everything back."""
        self.patches.undo()
        for handle in self._handles:
            handle.remove()
        unpassportize(self.network)

    def _with_private(
        self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *others: Any
    ) -> None:
        """Let plain weights load strictly; what is private follows in ``on_load_checkpoint``."""
        for name, value in self.branch()["tensors"].items():
            state_dict.setdefault(f"{prefix}{self.name}.{name}", value)


def _without_private(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: dict[str, Any]
) -> None:
    drop_private(module, state_dict, prefix)


def _log_nothing(*args: Any, **kwargs: Any) -> None:
    """In the place of ``log`` while the private branch runs."""


def _loss_in(returned: Any) -> Tensor | None:
    """The loss in what a training step returned; None if it skips the step."""
    loss = returned.get("loss") if isinstance(returned, Mapping) else returned
    if loss is not None and not isinstance(loss, Tensor):
        raise TrainingError(
            f"training_step returned a {type(loss).__name__}; let it return the loss, or a "
            "dictionary with 'loss'"
        )
    return loss
