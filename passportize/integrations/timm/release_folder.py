"""From a training checkpoint to one folder: what is committed to, what is published, what is kept.

Nothing is left to be done in the right order by hand, and nothing goes out that does not prove what
it should: the files are read back and verified before the folder appears.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from passportize.errors import CheckpointError, ClaimError, ClaimMismatch, WrongPassport
from passportize.integrations.timm.release_summary import release_summary
from passportize.passport.passport import Passport
from passportize.release.audit import is_clean
from passportize.release.audit_files import audit_files
from passportize.release.checkpoint import load_weights, save_weights
from passportize.release.claim import Claim, claim_of
from passportize.release.claim_file import load_claim, save_claim, write_claim
from passportize.release.exporting import export
from passportize.release.hub_folder import write_config
from passportize.release.model_card import model_card
from passportize.release.notice import Notice
from passportize.release.opening import commit_release
from passportize.release.preprocessing import Preprocessing
from passportize.surgery.surgery import unpassportize
from passportize.utils.files import sha256_of_file, write_atomically
from passportize.verification.verdict import Verdict
from passportize.verification.verification import verify

__all__ = ["PROGRAMS", "Release", "check_signature", "make_release"]

COMMIT, PUBLISH, KEEP, SUMMARY = "1-commit", "2-publish", "keep", "SUMMARY.md"
WEIGHTS, CLAIM = f"{PUBLISH}/model.safetensors", f"{KEEP}/claim.safetensors"
COMMITMENT, REQUEST = f"{COMMIT}/commitment.json", f"{COMMIT}/timestamp-request.tsq"
PROGRAMS = {"onnx": "model.onnx", "torch-export": "model.pt2"}


@dataclass(frozen=True)
class Release:
    """A release as it lies in its folder.

    Attributes:
        folder: Where.
        files: Relative paths, ``SUMMARY.md`` first.
        passport: Commitment of the passport, hex.
        claim: Digest of the claim, hex.
        weights: Digest of the released tensors, as in the claim, hex.
        weights_file: SHA-256 of the released file, hex.
        verdict: On the released file as it was read back.
        averaged: Whether these are the averaged weights of the checkpoint.
        architecture: timm's name, empty where there is none.
        preprocessing: How pictures are prepared, None where nothing says it.
    """

    folder: str
    files: tuple[str, ...]
    passport: str
    claim: str
    weights: str
    weights_file: str
    verdict: Verdict
    averaged: bool
    architecture: str
    preprocessing: Preprocessing | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible form."""
        verdict = self.verdict
        return {
            "folder": self.folder,
            "files": list(self.files),
            "passport": self.passport,
            "claim": self.claim,
            "weights": self.weights,
            "weights_file": self.weights_file,
            "averaged": self.averaged,
            "architecture": self.architecture,
            "preprocessing": self.preprocessing and self.preprocessing.to_dict(),
            "matched": verdict.matched,
            "total": verdict.total,
            "strength": verdict.strength,
            "public_accuracy": verdict.public_accuracy,
            "private_accuracy": verdict.private_accuracy,
            "fidelity": verdict.fidelity,
        }


def make_release(
    restored: nn.Module,
    passport: Passport,
    folder: str | os.PathLike[str],
    *,
    source: str,
    averaged: bool = False,
    preprocessing: Preprocessing | None = None,
    claim: Claim | str | os.PathLike[str] | None = None,
    formats: Sequence[str] = (),
    example_inputs: Any = None,
    commit: bool = True,
    loader: Iterable[Any] | None = None,
    training: str = "",
    contact: str | None = None,
) -> Release:
    """Strip, claim, export, commit and describe a model, in one folder that appears whole or never.

    Args:
        restored: The passportized model (:func:`restore_checkpoint`); it is plain afterwards.
        passport: The owner's.
        folder: New folder to make.
        source: Name of the checkpoint, for the summary.
        averaged: Whether these are its averaged weights, for the summary.
        preprocessing: How pictures are prepared.
        claim: A claim on these very weights that there is already; a new one is made by default.
        formats: Programs to export beside the weights: ``"onnx"``, ``"torch-export"``.
        example_inputs: Arguments of one forward pass, for the programs; timm models need none.
        commit: Make a release commitment too, and a request for its timestamp.
        loader: Labelled data to measure both branches on.
        training: A sentence about the training, for the model card.
        contact: Whom the card names for questions about licences and copies. Then the card says
            that the model is marked, with the claim's digest; it says nothing of it by default.

    Raises:
        CheckpointError: The folder exists or cannot be written.
        InvalidArgument: The contact has several lines.
        ClaimMismatch, WrongPassport: ``claim`` is on other weights, or of another passport.
        ClaimError: The weights do not carry the signature, so that a claim on them proves nothing.
        MissingExtra: A format, or the commitment, needs a package that is not installed.
    """
    notice = None if contact is None else Notice(contact)
    with _whole(Path(folder)) as place:
        for name in (COMMIT, PUBLISH, KEEP) if commit else (PUBLISH, KEEP):
            (place / name).mkdir()
        made = _claimed(restored, passport, preprocessing, claim, place / CLAIM)
        plain = unpassportize(restored)
        report = is_clean(plain)
        if not report:
            raise CheckpointError(f"{source}: traces of a private branch are left: {report}")
        save_weights(place / WEIGHTS, plain.state_dict())
        write_config(plain, made.preprocessing, place / PUBLISH)
        for kind in formats:
            target = place / PUBLISH / PROGRAMS[kind]
            export(plain, target, to=kind, example_inputs=example_inputs)
        verdict = _verdict(plain, place / WEIGHTS, passport, made, loader)
        if commit:
            commitment = commit_release(passport, made, place / WEIGHTS)
            commitment.save(place / COMMITMENT)
            write_atomically(place / REQUEST, commitment.timestamp_request(), error=CheckpointError)
        release = Release(
            folder=str(folder),
            files=(),
            passport=passport.commitment(),
            claim=made.digest(),
            weights=made.weights,
            weights_file=_sha256(place / WEIGHTS),
            verdict=verdict,
            averaged=averaged,
            architecture=made.architecture,
            preprocessing=made.preprocessing,
        )
        card = model_card(
            plain,
            release.weights_file,
            preprocessing=release.preprocessing,
            accuracy=_accuracy(verdict),
            training=training,
            notice=notice and replace(notice, digest=release.claim),
        )
        _write(place / PUBLISH / "README.md", card)
        _write(place / PUBLISH / "SHA256SUMS", _sums(place / PUBLISH))
        audit = audit_files(place / PUBLISH)
        if not audit:
            raise CheckpointError(f"{source}: what would be published is not clean: {audit}")
        _write(place / SUMMARY, release_summary(release, source, commit, passport.owner))
        record = json.dumps(release.to_dict(), indent=2) + "\n"
        _write(place / KEEP / "release.json", record)
        files = sorted(str(file.relative_to(place)) for file in place.rglob("*") if file.is_file())
    ordered = (SUMMARY, *(name for name in files if name != SUMMARY))
    return Release(**{**vars(release), "files": ordered})


def _claimed(
    restored: nn.Module,
    passport: Passport,
    preprocessing: Preprocessing | None,
    claim: Claim | str | os.PathLike[str] | None,
    path: Path,
) -> Claim:
    if claim is None:
        return save_claim(restored, path, preprocessing=preprocessing)
    given = claim if isinstance(claim, Claim) else load_claim(claim)
    if not passport.check_commitment(given.commitment):
        raise WrongPassport("the claim was made with another passport; give the one of this run")
    own = claim_of(restored)
    if given.weights != own.weights:
        raise ClaimMismatch(
            f"the claim is on other weights (sha256 {given.weights[:12]}..., these are "
            f"{own.weights[:12]}...): it belongs to another checkpoint, or to the averaged or live "
            "weights of this one; leave the claim out to have one made"
        )
    write_claim(given, path)
    # So that unpassportize does not warn that there is none.
    save_claim(restored, path, overwrite=True)
    write_claim(given, path, overwrite=True)
    return given


def _accuracy(verdict: Verdict) -> str:
    if verdict.public_accuracy is None:
        return ""
    return f"{verdict.public_accuracy:.2f} % of {verdict.samples:,} samples"


def check_signature(verdict: Verdict) -> None:
    """Refuse weights that do not carry the signature: a claim on them would prove nothing.

    Raises:
        ClaimError: They do not.
    """
    if verdict.accepted:
        return
    raise ClaimError(
        f"these weights carry {verdict.matched} of {verdict.total} bits, "
        f"{verdict.strength:.1f} bits of strength where {verdict.accept_strength:g} are needed: a "
        "claim on them would prove nothing. Train longer, embed the signature, or take another "
        "checkpoint (averaged weights follow the live ones late)"
    )


def _verdict(
    plain: nn.Module, file: Path, passport: Passport, claim: Claim, loader: Iterable[Any] | None
) -> Verdict:
    """What verification will find in the file, found now."""
    plain.load_state_dict(load_weights(file), strict=True)
    verdict = verify(file, passport, claim, loader, model=plain if loader is not None else None)
    check_signature(verdict)
    if not verdict.same_weights:
        raise ClaimMismatch(f"{file}: it does not hold the weights that the claim was made for")
    return verdict


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder under another name until all of it is there."""
    if folder.exists() or folder.is_symlink():
        raise CheckpointError(f"{folder} exists already; choose another name, or move it away")
    partial = folder.absolute().with_name(f".passportize-{secrets.token_hex(8)}")
    try:
        partial.mkdir(parents=False)
        yield partial
        partial.rename(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = error.strerror or type(error).__name__
        raise CheckpointError(f"{folder}: {reason}; choose a folder you may write to") from None
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _sums(folder: Path) -> str:
    """As ``sha256sum --check`` reads it."""
    names = sorted(file.name for file in folder.iterdir())
    return "".join(f"{_sha256(folder / name)}  {name}\n" for name in names)


def _sha256(file: Path) -> str:
    return sha256_of_file(file, error=CheckpointError)


def _write(path: Path, text: str) -> None:
    write_atomically(path, text.encode(), error=CheckpointError)
