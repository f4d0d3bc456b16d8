"""keygen, inspect and commitment: passports and claims as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from passportize.cli.inputs import PassphraseFile, new_passphrase, open_passport
from passportize.cli.terminal import ACCEPTED, REFUSED, AsJson, command, emit, leave, working
from passportize.errors import InvalidArgument, PassportFileError
from passportize.passport.passport import Passport
from passportize.release.claim import Claim
from passportize.release.claim_file import load_claim

__all__ = ["commitment", "inspect", "keygen"]


@command
def keygen(
    owner: Annotated[str, typer.Argument(help="Who owns the models that will carry it.")],
    contact: Annotated[str, typer.Option(help="How to reach the owner.")] = "",
    date: Annotated[
        str | None, typer.Option(help="ISO date, today by default.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The new file.")] = Path(
        "owner.passport"
    ),
    passphrase_file: PassphraseFile = None,
    no_passphrase: Annotated[bool, typer.Option(help="Leave the file unsealed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a passport: one secret and the owner it belongs to."""
    if out.exists():
        raise PassportFileError(
            f"{out} exists already, and a lost passport cannot be made again; choose another --out"
        )
    passport = Passport.generate(owner, contact=contact, date=date)
    passphrase = new_passphrase(passphrase_file, no_passphrase)
    with working("sealing the passport", as_json):
        passport.save(out, passphrase)
    record = {**_passport_record(passport), "file": str(out), "sealed": passphrase is not None}
    sealed = "sealed with your passphrase" if passphrase else "not sealed"
    text = (
        f"passport of {passport.owner}: {out} (mode 600, {sealed})\n"
        f"commitment, to publish before release: {passport.commitment()}\n"
        "Keep a copy of the file in a safe place: without it nothing can be proven."
    )
    emit(record, text, as_json)


@command
def inspect(
    file: Annotated[Path, typer.Argument(help="A passport or a claim.")],
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what a passport or claim says; secrets are never shown."""
    if _is_claim(file):
        claim = load_claim(file)
        emit(_claim_record(claim), _claim_text(claim), as_json)
        return
    with working("opening the passport", as_json):
        passport = open_passport(file, passphrase_file)
    record = _passport_record(passport)
    text = "\n".join(f"{name + ':':12} {value}" for name, value in record.items() if value)
    emit(record, text, as_json)


@command
def commitment(
    passport: Annotated[Path, typer.Argument(help="A passport.")],
    check: Annotated[
        str | None,
        typer.Option(help="A published commitment to compare with.", show_default=False),
    ] = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Print the commitment of a passport, or compare it with a published one."""
    with working("opening the passport", as_json):
        opened = open_passport(passport, passphrase_file)
    if check is None:
        emit({"commitment": opened.commitment()}, opened.commitment(), as_json)
        return
    same = opened.check_commitment(check.strip())
    text = "the commitment is that of this passport" if same else "another passport's commitment"
    emit({"commitment": opened.commitment(), "matches": same}, text, as_json)
    leave(ACCEPTED if same else REFUSED)


def _is_claim(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            head = stream.read(9)
    except OSError as error:
        raise InvalidArgument(f"{file}: {error.strerror}; check the path") from None
    # A claim is a safetensors file: eight bytes of length, then JSON. A passport is JSON.
    return head[:1] != b"{" and head[8:9] == b"{"


def _passport_record(passport: Passport) -> dict[str, Any]:
    return {
        "kind": "passport",
        "owner": passport.owner,
        "contact": passport.contact,
        "date": passport.date,
        "images": passport.claimant_chosen,
        "commitment": passport.commitment(),
    }


def _claim_record(claim: Claim) -> dict[str, Any]:
    return {
        "kind": "claim",
        "model": claim.model,
        "architecture": claim.architecture,
        "formulation": claim.config.formulation,
        "bits": claim.bits,
        "sites": [site.to_dict() for site in claim.sites],
        "weights": claim.weights,
        "commitment": claim.commitment,
        "digest": claim.digest(),
        "preprocessing": claim.preprocessing and claim.preprocessing.to_dict(),
    }


def _claim_text(claim: Claim) -> str:
    name = f"{claim.model} ({claim.architecture})" if claim.architecture else claim.model
    lines = [
        ("kind", "claim"),
        ("model", name),
        ("formulation", claim.config.formulation),
        ("sites", f"{len(claim.sites)}, {claim.bits} bits"),
        ("weights", f"sha256 {claim.weights}"),
        ("pictures", str(claim.preprocessing or "not recorded")),
        ("passport", f"commitment {claim.commitment}"),
        ("digest", f"{claim.digest()} (publish this before release)"),
    ]
    return "\n".join(f"{label + ':':12} {value}" for label, value in lines)
