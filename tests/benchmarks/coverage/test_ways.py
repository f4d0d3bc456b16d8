"""The coverage sweep builds and calls models as its rows say."""

from __future__ import annotations

import pytest

from benchmarks.coverage.libraries import LIBRARIES
from benchmarks.coverage.ways import build_on_meta, cheapest_way, count

LARGEST = 1e7  # so that models of the size of a test count as large


@pytest.mark.parametrize(
    ("source", "name", "size"),
    [
        ("timm", "resnet18", 64),
        ("timm", "halonet26t", 256),  # its blocks of eight do not fit into less
        ("torchvision", "resnet18", 64),
        ("torchvision", "vit_b_32", 224),
        ("torchvision", "inception_v3", 299),  # its auxiliary head needs more than the usual 224
        ("transformers", "vit", 32),
    ],
)
def test_the_smallest_picture_that_a_model_takes(source: str, name: str, size: int) -> None:
    way = cheapest_way(LIBRARIES[source], name, float("inf"))
    assert way.size == (3, size, size)


@pytest.mark.parametrize(
    ("source", "name", "described"),
    [
        ("timm", "deit_small_patch16_224", "depth=2, img_size=64"),
        ("timm", "convnext_tiny", "depths=(1, 1, 1, 1)"),
        ("timm", "vit_small_plus_patch16_dinov3", "depth=2"),
        ("timm", "vit_large_patch16_sapiens2", "depth=2, num_kv_heads=(None, 8)"),
        # torchvision takes a depth for it without a word, and builds it whole.
        ("torchvision", "convnext_tiny", "default"),
    ],
)
def test_a_row_says_how_a_large_model_was_cut(source: str, name: str, described: str) -> None:
    library = LIBRARIES[source]
    way = cheapest_way(library, name, LARGEST)
    assert way.described == described
    whole, built = build_on_meta(library, name, {}), build_on_meta(library, name, way.arguments)
    assert way.parameters == count(whole)
    assert (count(built) < count(whole)) == (described != library.as_built)


@pytest.mark.parametrize("source", LIBRARIES)
def test_every_library_names_its_models_and_what_they_came_with(source: str) -> None:
    library = LIBRARIES[source]
    assert library.packages[0] == "torch"
    assert len(set(library.names())) == len(library.names()) > 20
