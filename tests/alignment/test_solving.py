"""Matrices of streams that are wider than what writes them first."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import timm
import torch
from torch import Tensor, nn

from passportize.alignment import solving
from passportize.alignment.alignment import align
from passportize.alignment.folding import Folded
from passportize.alignment.held_out import HeldOut
from passportize.alignment.matrices import Pair
from passportize.alignment.spaces import MatrixKind
from passportize.alignment.tied_channels import find_tied_channels
from passportize.attacks.disguise import disguise
from tests.support.widths import as_trained


def narrow_patches() -> nn.Module:
    """A transformer of 96 channels, of which patches of 48 numbers say little."""
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=16,
        patch_size=4,
        embed_dim=96,
        depth=3,
        num_heads=3,
        num_classes=10,
    )


EXAMPLE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_a_matrix_that_was_half_a_guess_is_found_again_as_soon_as_enough_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released = as_trained(narrow_patches, 0)
    thief = copy.deepcopy(released)
    disguise(thief, torch.Generator().manual_seed(1), example_inputs=EXAMPLE)
    own = released.state_dict()
    tied = find_tied_channels(released, EXAMPLE)
    shapes = {name: tensor.shape for name, tensor in own.items()}
    bound = [name for name in own if name.startswith("blocks.") and own[name].dim() == 2]
    columns: list[int] = []
    find = solving.find_matrices

    def counted(kind: MatrixKind, pairs: Sequence[Pair]) -> Tensor:
        if kind is MatrixKind.CENTRED:
            columns.append(sum(pair.own.shape[2] for pair in pairs))
        return find(kind, pairs)

    monkeypatch.setattr(solving, "find_matrices", counted)
    found = align(own, thief.state_dict(), tied, HeldOut(tied, shapes, bound))
    # Too few; enough, from the first block alone; and nothing is left for a second round.
    assert len(columns) == 2
    assert columns[0] < 96 < 1.5 * 96 <= columns[1] < 3 * 96
    folded = Folded(tied, own)
    for name in bound:
        # But for what all channels have in common, which the norms take out.
        wanted = folded.unfold(name, folded.tensors[name])
        torch.testing.assert_close(found.tensors[name], wanted, rtol=1e-3, atol=1e-4)
