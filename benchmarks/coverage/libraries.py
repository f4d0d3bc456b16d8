"""The libraries of the coverage sweep: their models, how one is built, how it is called."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import timm
import torchvision
from torch import nn

Size = tuple[int, ...]


@dataclass(frozen=True)
class Library:
    """What the sweep has to know about a library.

    Attributes:
        names: Every model that it measures.
        build: Makes a model from its name and further arguments.
        size: Channels, height and width that a model is made for.
        packages: Whose versions belong to a row.
        smaller: Heights and widths to try before that size, the cheapest first.
        larger: To try behind it, for models that are made for more.
        needs_inputs: Whether the planner is given an example; what timm builds says its own size.
        as_built: Said of a model that was built without further arguments.
    """

    names: Callable[[], list[str]]
    build: Callable[[str, Mapping[str, Any]], nn.Module]
    size: Callable[[str, nn.Module], Size]
    packages: tuple[str, ...]
    smaller: tuple[int, ...] = (64, 128)
    larger: tuple[int, ...] = ()
    needs_inputs: bool = True
    as_built: str = "default"


def _timm_model(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    return cast(nn.Module, timm.create_model(name, **arguments))


def _timm_size(name: str, model: nn.Module) -> Size:
    config = getattr(model, "default_cfg", None)
    return tuple(config["input_size"]) if config is not None else (3, 224, 224)


def _torchvision_names() -> list[str]:
    """Those for images."""
    modules = (torchvision.models, torchvision.models.segmentation)
    return [name for module in modules for name in torchvision.models.list_models(module=module)]


def _torchvision_model(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    if name in torchvision.models.list_models(module=torchvision.models.segmentation):
        arguments = {"weights_backbone": None, **arguments}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # how some of them used to initialise
        return cast(nn.Module, torchvision.models.get_model(name, weights=None, **arguments))


# transformers builds models from configs: the small ones of the tests. It is slow to import.
def _transformers_names() -> list[str]:
    from tests.support import transformers_models

    return list(transformers_models.MODELS)


def _transformers_model(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    from tests.support import transformers_models

    return transformers_models.build(name, **arguments)


def _transformers_size(name: str, model: nn.Module) -> Size:
    from tests.support import transformers_models

    return transformers_models.image_size(name)


LIBRARIES = {
    "timm": Library(
        lambda: list(timm.list_models()),
        _timm_model,
        _timm_size,
        ("torch", "timm"),
        needs_inputs=False,
    ),
    "torchvision": Library(
        _torchvision_names,
        _torchvision_model,
        lambda name, model: (3, 224, 224),
        ("torch", "torchvision"),
        larger=(299,),
    ),
    "transformers": Library(
        _transformers_names,
        _transformers_model,
        _transformers_size,
        ("torch", "transformers"),
        smaller=(),
        as_built="a small config",
    ),
}
