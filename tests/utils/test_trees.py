"""Nested containers: every kind comes back as what it was."""

import types
from collections import OrderedDict, UserDict, defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from passportize.errors import InvalidArgument
from passportize.utils.trees import (
    arguments_of,
    copied,
    foreign_in,
    leaves_in,
    map_named,
    map_tensors,
    tensors_in,
)


class Pair(NamedTuple):
    left: object
    right: object


@dataclass(frozen=True)
class Record:
    first: Any
    second: Any = field(default=0, init=False)


@dataclass(slots=True)
class Slotted:
    first: Any


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


@pytest.mark.parametrize(
    "tree",
    [
        UserDict({"a": torch.ones(2), "b": "text"}),
        types.MappingProxyType({"a": torch.ones(2)}),
        Record((torch.ones(2), [torch.ones(1)])),
        Slotted({"a": torch.ones(2)}),
        [Slotted(UserDict(x=torch.ones(2)))],
    ],
)
def test_mappings_and_dataclasses_are_containers(tree):
    mapped = map_tensors(lambda tensor: tensor + 1, tree)
    assert type(mapped) is type(tree) and not list(foreign_in(tree))
    assert all((tensor == 2).all() for tensor in tensors_in(mapped))
    assert all((tensor == 1).all() for tensor in tensors_in(tree))
    assert len(list(tensors_in(tree))) == len(list(tensors_in(mapped))) > 0
    paths = [path for path, leaf in leaves_in(tree) if isinstance(leaf, torch.Tensor)]
    seen = []
    map_named(lambda path, tensor: seen.append(path), tree)
    assert seen == paths


def test_encodings_of_transformers_are_mappings():
    transformers = pytest.importorskip("transformers")
    encoding = transformers.BatchEncoding({"input_ids": torch.ones(2, 3)})
    assert map_tensors(lambda tensor: tensor[:1], encoding)["input_ids"].shape == (1, 3)
    assert arguments_of(encoding)[1].keys() == {"input_ids"}


@pytest.mark.parametrize("value", [Foreign(1), {1, 2}, iter([1]), object(), bytearray(2)])
def test_what_nobody_knows_is_foreign(value):
    assert list(foreign_in([1, {"a": value}, None, "text", 2.5, torch.float32])) == [value]


def test_arguments_mean_the_same_everywhere():
    one, pair = torch.ones(1), Pair(1, 2)
    assert arguments_of(one) == ((one,), {})
    assert arguments_of([one, 2]) == arguments_of((one, 2)) == ((one, 2), {})
    assert arguments_of(pair) == ((pair,), {})
    assert arguments_of(OrderedDict(a=1)) == arguments_of(UserDict(a=1)) == ((), {"a": 1})
    with pytest.raises(InvalidArgument, match="keys"):
        arguments_of({0: one})


def test_copies_share_nothing_and_pass_gradients_on():
    leaf = torch.ones(2, requires_grad=True)
    made = leaf * 2
    tree = (made, Foreign(made), [leaf], UserDict(x=made))
    twin = copied(tree)
    assert twin[0] is twin[1].tensor is twin[3]["x"] and twin[0] is not made
    twin[0].mul_(3).sum().backward()
    assert leaf.grad.tolist() == [6, 6] and made.tolist() == [2, 2]
