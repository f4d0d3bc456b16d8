"""A plain model of timm in the layout of the Hugging Face hub: weights, config and card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from passportize.errors import CheckpointError, InvalidArgument, MissingExtra
from passportize.release.checkpoint import save_weights
from passportize.release.model_card import model_card
from passportize.release.notice import Notice
from passportize.release.preprocessing import Preprocessing
from passportize.utils.files import sha256_of_file, write_atomically

__all__ = ["WEIGHTS", "write_config", "write_hub_folder"]

WEIGHTS = "model.safetensors"


def write_hub_folder(
    plain: nn.Module,
    folder: Path,
    preprocessing: Preprocessing | None = None,
    notice: Notice | None = None,
) -> None:
    """Write what ``timm.create_model("local-dir:FOLDER", pretrained=True)`` and the hub load.

    Args:
        plain: A plain model of timm.
        folder: Where to; made if it is not there.
        preprocessing: How pictures are prepared; as the model has it by default.
        notice: What the card is to say of the mark; nothing by default.

    Raises:
        InvalidArgument: The model is none of timm, or pictures of that size do not fit it.
        CheckpointError: A file cannot be written.
        MissingExtra: timm is not installed.
    """
    if not hasattr(plain, "pretrained_cfg"):
        raise InvalidArgument(
            f"{type(plain).__name__} is no model of timm, so there is no config to write; use "
            "to='safetensors'"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CheckpointError(f"{folder}: {reason}; choose a folder you may write to") from None
    save_weights(folder / WEIGHTS, plain.state_dict())
    write_config(plain, preprocessing, folder)
    digest = sha256_of_file(folder / WEIGHTS, error=CheckpointError)
    card = model_card(plain, digest, preprocessing=preprocessing, notice=notice)
    write_atomically(folder / "README.md", card.encode(), overwrite=True, error=CheckpointError)


def write_config(plain: nn.Module, preprocessing: Preprocessing | None, folder: Path) -> None:
    """Timm's ``config.json``, from which ``local-dir:`` and the hub make the model.

    Args:
        plain: A plain model; nothing is written for one that is none of timm.
        preprocessing: How pictures are prepared; as the model has it by default.
        folder: Where to.

    Raises:
        MissingExtra: timm is not installed.
    """
    if not hasattr(plain, "pretrained_cfg"):
        return
    try:
        from timm.models._hub import save_config_for_hf
    except ImportError:
        raise MissingExtra(
            "the layout for the Hugging Face hub needs timm and huggingface_hub; run pip install "
            "'passportize[timm]'"
        ) from None
    config: dict[str, Any] = {}
    if preprocessing is not None:
        prepared = preprocessing.to_dict()
        config["pretrained_cfg"] = {**prepared, "test_input_size": None, "test_crop_pct": None}
    save_config_for_hf(plain, str(folder / "config.json"), model_config=config)
