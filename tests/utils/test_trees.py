"""Nested containers: every kind comes back as what it was."""

from collections import OrderedDict, defaultdict
from typing import NamedTuple

import torch
from torch import nn

from passportize.utils.trees import map_tensors


class Pair(NamedTuple):
    left: object
    right: object


class Foreign:
    def __init__(self, tensor):
        self.tensor = tensor


def test_every_container_comes_back_as_what_it_was():
    one = torch.ones(2)
    tree = (
        [one, 3, None],
        Pair(one, "text"),
        {"a": one, "b": (one,)},
        OrderedDict(c=one),
        defaultdict(list, d=[one]),
        slice(one, None, 2),
        torch.ones(2, 3).max(0),
        one.shape,
    )
    mapped = map_tensors(lambda tensor: tensor + 1, tree)
    assert [type(item) for item in mapped] == [type(item) for item in tree]
    listed, pair, plain, ordered, default, bounds, extremes, shape = mapped
    assert listed[0].tolist() == [2, 2] and listed[1:] == [3, None]
    assert pair.left.tolist() == [2, 2] and pair.right == "text"
    assert plain["a"].tolist() == plain["b"][0].tolist() == [2, 2]
    assert ordered["c"].tolist() == default["d"][0].tolist() == [2, 2]
    assert default["new"] == []
    assert bounds.start.tolist() == [2, 2] and (bounds.stop, bounds.step) == (None, 2)
    assert extremes.values.tolist() == [2, 2, 2] and extremes.indices.tolist() == [1, 1, 1]
    assert shape == torch.Size([2])
    assert tree[0][0] is one and one.tolist() == [1, 1]


def test_foreign_containers_stay_as_they_are():
    packed = nn.utils.rnn.pack_sequence([torch.ones(3), torch.ones(2)])
    foreign = Foreign(torch.ones(1))
    assert map_tensors(lambda tensor: tensor.to("meta"), packed) is packed
    assert map_tensors(lambda tensor: tensor + 1, [foreign])[0] is foreign
