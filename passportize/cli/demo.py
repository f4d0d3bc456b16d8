"""demo: the whole story on real images, in about two minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from passportize.cli.terminal import AsJson, command, emit, results

__all__ = ["demo"]

EPOCHS, FASHION_EPOCHS = 30, 2


@command
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for what is written.")] = Path(
        "passportize-demo"
    ),
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the four files of Fashion-MNIST, to train on instead of the digits.",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="Epochs: 30 for the digits, 2 for Fashion-MNIST.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights and order; the key is always fresh.")] = 0,
    strangers: Annotated[int, typer.Option(help="Strangers whose accuracy is measured.")] = 20,
    signatures: Annotated[int, typer.Option(help="Strangers whose signature is tested.")] = 1000,
    as_json: AsJson = False,
) -> None:
    """Protect a small timm ResNet, train it on real images, strip it, prove whose it is."""
    from passportize.data.images import digits_data, fashion_data
    from passportize.demo.showing import run_demo

    if epochs is None:
        epochs = EPOCHS if data is None else FASHION_EPOCHS
    images = fashion_data(data) if data is not None else digits_data()
    result = run_demo(
        out,
        data=images,
        epochs=epochs,
        seed=seed,
        strangers=strangers,
        signatures=signatures,
        console=None if as_json else results(),
    )
    if as_json:
        emit(result.to_dict(), "", as_json)
