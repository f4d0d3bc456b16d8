"""The data sets that demo, examples and benchmarks use.

All loaders return plain tensors. Nothing is downloaded and nothing is printed.
"""

from __future__ import annotations

from passportize.data.digits import load_digits_images
from passportize.data.splits import family_split, stratified_split

__all__ = ["family_split", "load_digits_images", "stratified_split"]
