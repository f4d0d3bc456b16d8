"""inputs: keep some inputs with which a suspect may be looked at, before the key is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from passportize.cli.data_input import (
    BatchSize,
    ImgSize,
    Mean,
    Std,
    given_preprocessing,
    some_data,
)
from passportize.cli.mark import Calibration, Images
from passportize.cli.model_input import Arguments, NumClasses, load_model
from passportize.cli.terminal import AsJson, command, emit, working
from passportize.errors import DatasetError

__all__ = ["inputs"]


@command
def inputs(
    model: Annotated[str, typer.Argument(help="What they are prepared for.")],
    data: Calibration,
    out: Annotated[Path, typer.Option("--out", "-o", help="The new file.")] = Path(
        "owner.inputs.safetensors"
    ),
    images: Images = 256,
    num_classes: NumClasses = None,
    arg: Arguments = None,
    batch_size: BatchSize = 32,
    img_size: ImgSize = None,
    mean: Mean = None,
    std: Std = None,
    as_json: AsJson = False,
) -> None:
    """Keep inputs with which a suspect may be looked at, and print their digest.

    Give the file to timm-train (--inputs), to release and to verify. The key of the model depends
    on the digest, so this comes before the training.
    """
    from passportize.release.inputs_file import save_inputs

    if out.exists():
        raise DatasetError(f"{out} exists already; choose another name, or move it away")
    with working(f"reading {data}", as_json):
        shell = load_model(model, arg, num_classes)
        given = given_preprocessing(img_size, mean, std)
        batches, _ = some_data(data, shell, images, batch_size, given)
        digest = save_inputs(batches, out)
    record = {"file": str(out), "digest": digest, "batches": len(batches)}
    emit(record, f"{out}: digest {digest} (keep the file as long as the claim)", as_json)
