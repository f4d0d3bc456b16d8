"""The card that goes out with a model."""

from __future__ import annotations

from torch import nn

from passportize.release.notice import Notice
from passportize.release.preprocessing import Preprocessing
from passportize.utils.foreign import architecture_of

__all__ = ["model_card"]


def model_card(
    plain: nn.Module,
    weights_file: str,
    *,
    preprocessing: Preprocessing | None = None,
    accuracy: str = "",
    training: str = "",
    notice: Notice | None = None,
) -> str:
    """A model card in Markdown, in the hub's layout. It says nothing of passports.

    Args:
        plain: The model that is released.
        weights_file: SHA-256 of ``model.safetensors``, hex.
        preprocessing: How pictures are prepared, where that is known.
        accuracy: What was measured, in words.
        training: A sentence about the training.
        notice: What the owner wants to say of the mark; nothing by default.
    """
    architecture = architecture_of(plain)
    name = architecture or type(plain).__name__
    size = sum(parameter.numel() for parameter in plain.parameters())
    classes = getattr(plain, "num_classes", None)
    lines = ["---"]
    if architecture:
        lines += ["library_name: timm", "tags:", "- image-classification", "- timm"]
    lines += ["---", "", f"# {name}", "", "| | |", "|---|---|"]
    lines.append(f"| parameters | {size / 1e6:,.2f} M |")
    if isinstance(classes, int) and classes > 0:
        lines.append(f"| classes | {classes:,} |")
    prepared = preprocessing
    if prepared is not None:
        lines += [
            f"| input | {' x '.join(map(str, prepared.input_size))} |",
            f"| resized with | {prepared.interpolation}, {prepared.crop_mode} crop of "
            f"{prepared.crop_pct:g} |",
            f"| mean | {', '.join(f'{value:g}' for value in prepared.mean)} |",
            f"| standard deviation | {', '.join(f'{value:g}' for value in prepared.std)} |",
        ]
    if accuracy:
        lines.append(f"| top-1 accuracy | {accuracy} |")
    if training:
        lines.append(f"| training | {training} |")
    lines.append(f"| SHA-256 of model.safetensors | `{weights_file}` |")
    lines += ["", "## Use", "", "```python"]
    if architecture:
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
    if notice is not None:
        lines.append(notice.to_markdown())
    return "\n".join(lines)
