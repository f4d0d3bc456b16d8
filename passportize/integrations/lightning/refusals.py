"""What a Lightning run has to be like for a passport, said before anything starts."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from passportize.errors import InvalidArgument

__all__ = ["name_of_network", "refuse_run", "refuse_weights_only"]

_STRATEGIES = ("SingleDeviceStrategy", "DDPStrategy")


def name_of_network(module: nn.Module, named: str | None) -> str:
    """Name of the attribute of a LightningModule that is to be marked.

    Args:
        module: The LightningModule.
        named: As the user says; None where it is for the module to say.

    Raises:
        InvalidArgument: There is none of that name, or several could be meant.
    """
    kind = type(module).__name__
    learning = [
        name
        for name, child in module.named_children()
        if next(child.parameters(), None) is not None
    ]
    if named is not None:
        try:
            found = module.get_submodule(named)
        except AttributeError:
            found = module
        if found is module:
            raise InvalidArgument(
                f"network={named!r}: {kind} has no such module when fit begins; it has "
                f"{', '.join(learning) or 'none with parameters'}. The network has to be made in "
                "__init__"
            )
        return named
    if len(learning) == 1:
        return learning[0]
    if not learning:
        raise InvalidArgument(
            f"{kind} has no network when fit begins; make it in __init__, as self.network say, "
            "and not in setup or configure_model"
        )
    raise InvalidArgument(
        f"{kind} has several modules with parameters ({', '.join(learning)}); name the one to mark "
        "with network=, or put the layers into one nn.Module and call that in training_step"
    )


def refuse_run(trainer: Any, module: Any) -> None:
    """Look for what cannot work, before anything is changed.

    Args:
        trainer: The Trainer.
        module: The LightningModule.

    Raises:
        InvalidArgument: Something was found.
    """
    own = [each for each in trainer.callbacks if type(each).__name__ == "PassportCallback"]
    if len(own) > 1:
        raise InvalidArgument("a Trainer takes one PassportCallback: give one network a passport")
    if not module.automatic_optimization:
        raise InvalidArgument(
            f"{type(module).__name__} optimises manually, so nobody but its training_step knows "
            "when a loss is minimised; passportize the network in __init__ and use "
            "passportize.joint_loss in training_step, see docs/lightning.md"
        )
    if getattr(module, "_compiler_ctx", None) is not None:
        raise InvalidArgument(
            f"{type(module).__name__} is compiled, which cannot be trained with this callback; "
            "give the Trainer the module as it was written"
        )
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        raise InvalidArgument(
            "training_step takes dataloader_iter, so that the batch is not known before it runs; "
            "let it take batch"
        )
    strategy = type(trainer.strategy).__name__
    if strategy not in _STRATEGIES:
        raise InvalidArgument(
            f"strategy {strategy} is not supported with a passport, only one device and DDP are; "
            "write the loop yourself for FSDP2, see docs/timm.md"
        )
    if getattr(trainer.strategy, "_layer_sync", None) is not None:
        raise InvalidArgument(
            "sync_batchnorm=True converts the network after it was passportized, which would lose "
            "the private branch; convert it in __init__ with "
            "torch.nn.SyncBatchNorm.convert_sync_batchnorm, and leave the flag out"
        )


def refuse_weights_only(trainer: Any) -> None:
    """A claim on ``paper`` needs what its private branch has learnt, of the same checkpoint.

    Raises:
        InvalidArgument: A ``ModelCheckpoint`` leaves it out.
    """
    if any(getattr(each, "save_weights_only", False) for each in trainer.checkpoint_callbacks):
        raise InvalidArgument(
            "ModelCheckpoint(save_weights_only=True) leaves the private branch out, of which the "
            "claim on 'paper' needs the learnable part; leave save_weights_only out"
        )
