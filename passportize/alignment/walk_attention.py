"""What attention does to labelled channels: it sees products of queries and keys, head by head.

The scores of a head are sums over its channels of query times key, so any invertible matrix may act
on the queries if its inverse, transposed, acts on the keys. Values are averaged over positions, so
any matrix on them goes through to whatever reads the output. Heads can change places.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from passportize.alignment.channels import FIXED, ChannelLabels, Heads, thin
from passportize.tracing.graph import argument, shape_of

__all__ = ["ATTENTION_STEPS", "AttentionLabels"]

_PRODUCTS = frozenset({"matmul", "bmm"})
ATTENTION_STEPS = _PRODUCTS | {"scaled_dot_product_attention"}


class AttentionLabels:
    """The scores that a walk has met, to know them again when they weigh values.

    Args:
        labels: Where to write down what is found.
    """

    def __init__(self, labels: ChannelLabels) -> None:
        self._labels = labels
        self._scores: dict[int, tuple[Tensor, Tensor]] = {}

    def label(self, node: fx.Node, name: str, found: list[Any]) -> Tensor | None:
        """Labels of the output of a step; None where it is no attention that is understood.

        Args:
            node: The step.
            name: Its name.
            found: Labels of its first tensors: two factors, or queries, keys and values.
        """
        shape = shape_of(node)
        if shape is None or not all(isinstance(value, Tensor) for value in found):
            return None
        if name in _PRODUCTS:
            return self._product(found[0], found[1], shape) if len(found) == 2 else None
        if len(found) < 3:
            return None
        queries, keys, values = found[:3]
        scores = self._score(queries, keys.transpose(-1, -2), (*queries.shape[:-1], keys.shape[-2]))
        if scores is None:
            return None
        mask = argument(node, 3, "attn_mask", None)
        if isinstance(mask, fx.Node):
            there = shape_of(mask) or ()
            # One mask for each head keeps the heads in their places.
            if len(there) >= 3 and there[-3] != 1:
                self._labels.accompany(thin(scores), torch.tensor(FIXED))
        return self._weighted(scores, values, shape)

    def _product(self, left: Tensor, right: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        if left.dim() != right.dim() or left.dim() < 2:
            return None
        narrow = thin(left)
        if narrow.shape[-1] == 1 and int(narrow.flatten()[0]) in self._scores:
            return self._weighted(left, right, shape)
        return self._score(left, right, shape)

    def _score(self, left: Tensor, right: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        """Sums over the last dimension of the one and the last but one of the other."""
        turned = right.transpose(-1, -2)
        if not (left.dim() == right.dim() == len(shape)):
            return None
        queries, keys = _by_head(left), _by_head(turned)
        if queries is None or keys is None or queries[0].shape != keys[0].shape:
            return None
        dim = queries[1]
        if dim != keys[1]:
            return None
        labels, (atoms, others) = self._labels, (queries[0], keys[0])
        scores = labels.fresh(len(atoms))
        for side in (atoms, others):
            labels.accompany(scores[:, None], side)
            labels.unscale(side)
        labels.unscale(scores)
        for score in scores.tolist():
            self._scores[score] = (atoms, others)
        size = [-1 if d == dim else 1 for d in range(len(shape))]
        return scores.view(size if dim is not None else [1] * len(shape)).expand(shape)

    def _weighted(self, scores: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        """Means of values over positions, by scores."""
        found = _by_head(values)
        if found is None or scores.dim() != values.dim() or values.dim() != len(shape):
            return None
        atoms, dim = found
        weighing = thin(scores)
        varied = [d for d in range(weighing.dim()) if weighing.shape[d] > 1]
        if varied != ([dim] if dim is not None else []):
            return None
        heads = weighing.reshape(-1)
        known = self._scores.get(int(heads[0]))
        if len(heads) != len(atoms) or known is None:
            return None
        self._labels.accompany(heads[:, None], atoms)
        self._labels.unscale(atoms)
        self._labels.heads.append(Heads(*known, atoms))
        size = [1] * len(shape)
        size[-1] = atoms.shape[1]
        if dim is not None:
            size[dim] = len(atoms)
        return atoms.reshape(size).expand(shape)


def _by_head(labels: Tensor) -> tuple[Tensor, int | None] | None:
    """Atoms as ``[heads, channels]`` and the dimension of the heads, None if there is one head.

    None where labels differ along other dimensions, or channels come twice.
    """
    narrow = thin(labels)
    varied = [d for d in range(narrow.dim()) if bool((narrow != narrow.narrow(d, 0, 1)).any())]
    last = labels.dim() - 1
    if last not in varied or len(varied) > 2 or (len(varied) == 2 and varied[0] == last - 1):
        return None
    for dim in range(narrow.dim()):
        if dim not in varied:
            narrow = narrow.narrow(dim, 0, 1)
    head = varied[0] if len(varied) == 2 else None
    atoms = narrow.reshape(-1, narrow.shape[-1])
    if bool((atoms <= FIXED).any()) or len(torch.unique(atoms)) < atoms.numel():
        return None
    return atoms, head
