"""The texts of a release: the card that goes out with the model, and the owner's own summary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from passportize.integrations.timm.release_folder import Release

__all__ = ["model_card", "release_summary"]

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


def model_card(plain: nn.Module, release: Release, training: str = "") -> str:
    """A model card in Markdown, in the hub's layout. It says nothing of passports.

    Args:
        plain: The model that is released.
        release: What is known of the release.
        training: A sentence about the training.
    """
    name = release.architecture or type(plain).__name__
    size = sum(parameter.numel() for parameter in plain.parameters())
    classes = getattr(plain, "num_classes", None)
    lines = ["---"]
    if release.architecture:
        lines += ["library_name: timm", "tags:", "- image-classification", "- timm"]
    lines += ["---", "", f"# {name}", "", "| | |", "|---|---|"]
    lines.append(f"| parameters | {size / 1e6:,.2f} M |")
    if isinstance(classes, int) and classes > 0:
        lines.append(f"| classes | {classes:,} |")
    prepared = release.preprocessing
    if prepared is not None:
        lines += [
            f"| input | {' x '.join(map(str, prepared.input_size))} |",
            f"| resized with | {prepared.interpolation}, {prepared.crop_mode} crop of "
            f"{prepared.crop_pct:g} |",
            f"| mean | {', '.join(f'{value:g}' for value in prepared.mean)} |",
            f"| standard deviation | {', '.join(f'{value:g}' for value in prepared.std)} |",
        ]
    verdict = release.verdict
    if verdict.public_accuracy is not None:
        lines.append(
            f"| top-1 accuracy | {verdict.public_accuracy:.2f} % of {verdict.samples:,} samples |"
        )
    if training:
        lines.append(f"| training | {training} |")
    lines.append(f"| SHA-256 of model.safetensors | `{release.weights_file}` |")
    lines += ["", "## Use", "", "```python"]
    if release.architecture:
        lines += [
            "import timm",
            "",
            'model = timm.create_model("local-dir:.", pretrained=True).eval()',
            "transform = timm.data.create_transform(",
            "    **timm.data.resolve_model_data_config(model), is_training=False",
            ")",
        ]
    else:
        lines += [
            "from safetensors.torch import load_file",
            "",
            f"model = ...  # a {type(plain).__name__}",
            'model.load_state_dict(load_file("model.safetensors"))',
        ]
    lines += ["```", "", "To be filled in: intended use, training data, limits, license.", ""]
    return "\n".join(lines)


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
