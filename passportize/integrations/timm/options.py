"""The launcher's own options, which come before the script and never reach it."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from passportize.config import FORMULATIONS, PassportConfig
from passportize.errors import InvalidArgument
from passportize.passport.file import PASSPHRASE
from passportize.passport.passport import Passport
from passportize.release.inputs_file import inputs_digest

__all__ = ["LaunchOptions", "parse_options", "refuse_unsupported", "setting"]


@dataclass(frozen=True)
class LaunchOptions:
    """What the user asked for.

    Attributes:
        passport: The owner's passport.
        config: The formulation.
        where: Glob patterns of the norms to bind; None for all.
        embed: Whether the signature is put into the weights before the training starts.
        calibration: A folder of pictures to do so with, for weights that are trained already.
        claim: Where to write the claim after training, or None.
        claim_of: Which checkpoint the claim is on, ``"best"`` or ``"last"``.
        ema: Whether it is on the averaged weights; None: if there are any.
        script: The training script.
        arguments: What follows it on the command line, untouched.
    """

    passport: Passport
    config: PassportConfig
    where: tuple[str, ...] | None
    embed: bool
    calibration: Path | None
    claim: Path | None
    claim_of: str
    ema: bool | None
    script: Path
    arguments: tuple[str, ...]


def parse_options(argv: Sequence[str]) -> LaunchOptions:
    """Read the launcher's options, up to the name of the script.

    Raises:
        SystemExit: The command line makes no sense, or help was asked for.
        InvalidArgument: A setting makes no sense, or the script does not exist.
        PassportFileError: The passport cannot be read.
        DatasetError: The inputs cannot be read.
    """
    parser = argparse.ArgumentParser(
        prog="passportize timm-train",
        description="Run timm's train.py, or a script like it, with a passport.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--passport",
        required=True,
        metavar="FILE",
        help=f"the owner's passport; for a sealed one set the environment variable {PASSPHRASE}",
    )
    parser.add_argument("--preset", choices=sorted(FORMULATIONS), default="keyed")
    parser.add_argument(
        "--where", action="append", metavar="GLOB", help="norms to bind, 'layer4*' say; repeatable"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another setting of PassportConfig, private_fraction=0.5 say; repeatable",
    )
    parser.add_argument(
        "--no-embed",
        action="store_true",
        help="leave the bits to the training instead of turning the weights before it starts",
    )
    parser.add_argument(
        "--calibration",
        metavar="FOLDER",
        help="pictures, one folder per class, to put the signature into trained weights with "
        "(--initial-checkpoint, --pretrained), so that the layers compute what they did",
    )
    parser.add_argument(
        "--inputs",
        metavar="FILE",
        help="the owner's inputs, which `passportize inputs` wrote: the key depends on them, and a "
        "suspect may be looked at with them",
    )
    parser.add_argument(
        "--claim",
        metavar="FILE",
        help="write the claim on the checkpoint that will be released here: the best one, and its "
        "averaged weights if it has any",
    )
    parser.add_argument(
        "--claim-of", choices=("best", "last"), default="best", help="or on the last one"
    )
    parser.add_argument(
        "--ema",
        action=argparse.BooleanOptionalAction,
        help="claim the averaged weights, or the others; by default the averaged if there are any",
    )
    parser.add_argument("script", help="train.py; all that follows is for the script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args(argv)
    settings = dict(setting(text) for text in options.set)
    if options.inputs:
        settings["inputs"] = inputs_digest(options.inputs)
    config = PassportConfig.preset(options.preset, **settings)
    script = Path(options.script)
    if not script.is_file():
        raise InvalidArgument(f"{script}: there is no such training script; check the path")
    claim = Path(options.claim) if options.claim else None
    if claim is not None:
        _check_claim_path(claim)
    calibration = Path(options.calibration) if options.calibration else None
    if calibration is not None and (options.no_embed or not calibration.is_dir()):
        reason = "it goes without --no-embed" if options.no_embed else "there is no such folder"
        raise InvalidArgument(f"--calibration {calibration}: {reason}")
    refuse_unsupported(options.arguments)
    # Taken out of the environment, which training scripts and their trackers like to log.
    passport = Passport.load(options.passport, os.environ.pop(PASSPHRASE, None))
    where = tuple(options.where) if options.where else None
    return LaunchOptions(
        passport,
        config,
        where,
        not options.no_embed,
        calibration,
        claim,
        options.claim_of,
        options.ema,
        script,
        tuple(options.arguments),
    )


def _check_claim_path(claim: Path) -> None:
    """Before days of training, not after them."""
    folder = claim.absolute().parent
    if claim.exists():
        reason = "it exists already; choose another name for the claim, or move it away"
    elif not folder.is_dir():
        reason = f"there is no folder {folder}; make it first"
    elif not os.access(folder, os.W_OK | os.X_OK):
        reason = f"{folder} cannot be written to; choose another folder"
    else:
        return
    raise InvalidArgument(f"--claim {claim}: {reason}")


def refuse_unsupported(arguments: Sequence[str]) -> None:
    """Look through the script's arguments for what cannot work, before anything starts.

    Raises:
        InvalidArgument: One is there, on the command line or in the YAML file of ``--config``.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--config", default="")
    parser.add_argument("--torchscript", action="store_true")
    parser.add_argument("--split-bn", action="store_true")
    parser.add_argument("--kd-distill-type", default="")
    parser.add_argument("--kd-model-name", default="")
    given, _ = parser.parse_known_args(list(arguments))
    settings = {**_yaml_settings(given.config), **{k: v for k, v in vars(given).items() if v}}
    if settings.get("torchscript"):
        raise InvalidArgument(
            "--torchscript cannot be trained with a passport: TorchScript modules cannot be "
            "changed. Use --torchcompile, or train in Python and script the restored model"
        )
    if settings.get("split_bn"):
        raise InvalidArgument(
            "--split-bn cannot be trained with a passport: it sends fixed shares of the batch "
            "through other statistics, which the rows of the private branch would shift"
        )
    if settings.get("kd_model_name") and settings.get("kd_distill_type") == "feature":
        raise InvalidArgument(
            "--kd-distill-type feature cannot be trained with a passport: it calls parts of the "
            "model one by one, past its private branch; use logit or token"
        )


def _yaml_settings(path: str) -> dict[str, Any]:
    if not path or not Path(path).is_file():
        return {}
    import yaml  # type: ignore[import-untyped]  # a dependency of timm

    settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    return settings if isinstance(settings, dict) else {}


def setting(text: str) -> tuple[str, Any]:
    """Name and value of a setting of ``PassportConfig``, written as ``NAME=VALUE``.

    Raises:
        InvalidArgument: It is not.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidArgument(f"--set {text}: write NAME=VALUE, private_fraction=0.5 say")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
