"""The owner's own summary of a release: what is to be done with each file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from passportize.integrations.timm.release_folder import Release

__all__ = ["release_summary"]

_COMMITTED = (
    "**First** send `1-commit/timestamp-request.tsq` to a timestamping authority (RFC 3161), put "
    "its response in with `passportize commit -o 1-commit/commitment.json --add-token RESPONSE`, "
    "and publish `1-commit/commitment.json`. Its date is what shows that you were first; made "
    "after the weights are out it shows nothing."
)
_UNCOMMITTED = (
    "**First** have the digest of the claim below timestamped, and publish it; without that, "
    "nothing shows that you were first."
)
_STEPS = (
    "**Then** publish `2-publish/`, all of it and nothing else. Fill in its README.md.",
    "**Keep** `keep/claim.safetensors`: without it the proof is harder. It holds no secret.",
    "**Keep secret** the passport and its passphrase, with a copy elsewhere. They are not in this "
    "folder: without them nothing can be proven, and with them anybody could be you.",
)


def release_summary(release: Release, source: str, commit: bool, owner: str) -> str:
    """What is to be done with each file, in order, and the digests. For the owner alone.

    Args:
        release: What was made.
        source: Name of the checkpoint.
        commit: Whether a release commitment was made.
        owner: As the passport says.
    """
    verdict = release.verdict
    weights = "averaged weights" if release.averaged else "weights"
    lines = [
        f"# Release of {owner}",
        "",
        f"The {weights} of `{source}`. Read back from the file that is released: "
        f"{verdict.matched} of {verdict.total} bits, {verdict.strength:.0f} bits of strength, "
        f"{verdict.accept_strength:g} needed.",
        "",
    ]
    if verdict.public_accuracy is not None and verdict.private_accuracy is not None:
        lines += [
            f"Accuracy {verdict.public_accuracy:.2f} %, of the private branch "
            f"{verdict.private_accuracy:.2f} %; {verdict.fidelity_reason}.",
            "",
        ]
    steps = [_COMMITTED if commit else _UNCOMMITTED, *_STEPS]
    steps.append(
        f"**Keep to yourself** the training checkpoint `{source}`: it holds the private branch."
    )
    lines += [f"{number}. {step}" for number, step in enumerate(steps, 1)]
    lines += [
        "",
        "| digest | |",
        "|---|---|",
        f"| commitment of the passport | `{release.passport}` |",
        f"| claim | `{release.claim}` |",
        f"| released tensors | `{release.weights}` |",
        f"| SHA-256 of model.safetensors | `{release.weights_file}` |",
        "",
        "When a copy turns up, in this folder:",
        "",
        "```sh",
        "passportize verify SUSPECT --passport YOURS --claim keep/claim.safetensors \\",
    ]
    model = "local-dir:2-publish" if release.architecture else "YOUR_MODULE:FUNCTION"
    if commit:
        lines.append("    --commitment 1-commit/commitment.json --tsa-roots ROOTS.pem \\")
    lines += [
        f"    --model {model} --released 2-publish/model.safetensors \\",
        "    --data FOLDER_OF_PICTURES --report verdict.html",
        "```",
        "",
    ]
    return "\n".join(lines)
