"""Names as people write them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

__all__ = ["closest_names", "describe_type", "is_name_of_norm"]

_NORM_NAME = re.compile(r"norm|^(frozen)?(bn|ln|gn)\d*d?$|batchnorm|rms", re.IGNORECASE)


def is_name_of_norm(name: str) -> bool:
    """Whether a class of this name is a normalization layer, or speaks of one."""
    return bool(_NORM_NAME.search(name))


def describe_type(norm_class: type) -> str:
    """Qualified name as people write it: ``torch.nn.BatchNorm2d``, ``timm.layers.norm.LayerNorm``.

    >>> from torch import nn
    >>> describe_type(nn.BatchNorm2d)
    'torch.nn.BatchNorm2d'
    """
    module = norm_class.__module__
    if module.startswith("torch.nn.modules."):
        module = "torch.nn"
    return f"{module}.{norm_class.__qualname__}"


def closest_names(name: str, names: Sequence[str]) -> str:
    """A hint for an error message, `` Did you mean ...?``; empty where nothing is close."""
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.3)
    return f" Did you mean {' or '.join(close)}?" if close else ""
