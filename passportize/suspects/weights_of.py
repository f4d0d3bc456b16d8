"""The weights in what a checkpoint holds: a state dict, a training checkpoint, a whole model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from passportize.release.checkpoint import AVERAGED_KEYS, WEIGHT_KEYS
from passportize.suspects.pickle_machine import Made
from passportize.suspects.quantised import dequantised
from passportize.suspects.refusals import Damaged, Unsupported
from passportize.suspects.source import Found
from passportize.suspects.torch_pickle import Array
from passportize.suspects.window import Budget

__all__ = ["named_tensors", "weights_of"]

DEEPEST = 64
_MODULE_PARTS = ("_parameters", "_buffers", "_modules")
_OPTIMIZER = ("optim", "opt_state", "lr_sched", "scheduler", "scaler")


def weights_of(content: Any, key: str | None, budget: Budget) -> Found:
    """The weights in a checkpoint, under the keys where training scripts put them.

    Args:
        content: What its pickle describes.
        key: Where to look, if not in the usual places.
        budget: Of the file.

    Raises:
        Unsupported: There are none under ``key``, or none at all.
    """
    notes: list[str] = []
    if key is not None:
        inside = content.get(key) if isinstance(content, Mapping) else None
        if inside is None:
            raise Unsupported(f"it has nothing under {key!r}{_keys(content)}", "give another key")
        content = inside
    content = _likeliest(content, budget)
    if isinstance(content, Mapping):
        content = {
            name: value
            for name, value in content.items()
            if not str(name).lower().startswith(_OPTIMIZER)
        }
    scales: dict[str, float] = {}
    tensors = named_tensors(content, budget, scales)
    if not tensors:
        raise Unsupported(f"it holds no tensors{_keys(content)}", "get the weights themselves")
    if isinstance(content, Made):
        notes.append(
            f"it is a whole model, a pickled {content.of}: its tensors were read, its code was not"
        )
    return Found(tensors, notes, scales)


def _keys(content: Any) -> str:
    if not isinstance(content, Mapping) or not content:
        return ""
    return f" (it has: {', '.join(sorted(str(name)[:40] for name in content)[:8])})"


def _likeliest(content: Any, budget: Budget, depth: int = 3) -> Any:
    """The state dict or model within a training checkpoint; itself if it is one, or has none."""
    if not isinstance(content, Mapping) or not depth:
        return content
    direct = sum(_is_weight(value, budget) for value in content.values())
    if direct and direct >= len(content) / 2:
        return content
    for place in (*WEIGHT_KEYS, *AVERAGED_KEYS):
        inside = content.get(place)
        if isinstance(inside, (Mapping, Made)) and named_tensors(inside, budget):
            return _likeliest(inside, budget, depth - 1)
    return content


def _is_weight(value: Any, budget: Budget) -> bool:
    if isinstance(value, Tensor):
        return True
    if isinstance(value, Array):
        return value.tensor is not None
    return isinstance(value, (tuple, Made)) and bool(named_tensors(value, budget))


def named_tensors(
    content: Any, budget: Budget, scales: dict[str, float] | None = None
) -> dict[str, Tensor]:
    """All tensors of a tree of values by the way to them.

    Modules count as their parameters, buffers and submodules do, so a whole model has the names
    that its state dict would have.

    Args:
        content: The tree.
        budget: Of the file.
        scales: Takes the scale of LoRA adapters by the name of their layer.

    Raises:
        Damaged: It is deeper than any checkpoint.
        Unsupported: It has more values.
    """
    found: dict[str, Tensor] = {}
    # Each value with those that it lies in, so that a ring is not walked without end.
    todo: list[tuple[str, Any, tuple[int, ...]]] = [("", content, ())]
    while todo:
        name, value, around = todo.pop()
        budget.step()
        if len(around) > DEEPEST:
            raise Damaged("it is nested more deeply than any checkpoint")
        if isinstance(value, Array):
            value = value.tensor
        if isinstance(value, Tensor):
            found.setdefault(name, value)
            continue
        if isinstance(value, Made) and (plain := dequantised(value)) is not None:
            found.setdefault(name, plain)
            continue
        if not isinstance(value, (Mapping, Made, list, tuple)):
            continue
        if id(value) in around:
            continue
        if scales is not None:
            _take_scales(name, value, scales)
        around = (*around, id(value))
        below = [(_joined(name, key), inside, around) for key, inside in _children(value)]
        todo.extend(reversed(below))
    return found


def _joined(name: str, key: str) -> str:
    return f"{name}.{key}" if name and key else name or key


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Made):
        yield from _inside(value)
    elif isinstance(value, Mapping):
        if any(part in value for part in _MODULE_PARTS):
            yield from _of_module(value)
        else:
            yield from ((str(key), inside) for key, inside in value.items())
    elif not _plain(value):
        yield from ((str(place), inside) for place, inside in enumerate(value))


def _plain(values: list[Any] | tuple[Any, ...]) -> bool:
    """Whether values are numbers or text, of which there may be very many."""
    return all(isinstance(item, (int, float, str, bytes, type(None))) for item in values)


def _inside(made: Made) -> Iterator[tuple[str, Any]]:
    state = made.state
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], Mapping):
        # State of a class with __slots__.
        state = {**(state[0] if isinstance(state[0], Mapping) else {}), **state[1]}
    yield from ((str(key), inside) for key, inside in made.entries.items())
    yield from ((str(place), inside) for place, inside in enumerate(made.items))
    if state is not None:
        yield "", state
    # A module of torch.fx is made anew from its dictionary, which is an argument.
    for place, argument in enumerate(made.args):
        if isinstance(argument, Mapping):
            yield "", argument
        elif isinstance(argument, (Tensor, Array, Made, list, tuple)):
            yield str(place), argument


def _of_module(state: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    hidden = _members(state.get("_non_persistent_buffers_set"))
    for part in _MODULE_PARTS:
        entries = state.get(part)
        if isinstance(entries, Made):
            entries = entries.entries
        if isinstance(entries, Mapping):
            yield from (
                (str(key), inside)
                for key, inside in entries.items()
                if part != "_buffers" or key not in hidden
            )
    # Quantised layers keep their weights packed, beside what a module registers.
    if (packed := state.get("_packed_params")) is not None:
        yield "_packed_params", packed


def _take_scales(name: str, value: Any, scales: dict[str, float]) -> None:
    """LoRA's scale of a layer, where its module is at hand."""
    scaling = value.get("scaling") if isinstance(value, Mapping) else None
    if isinstance(scaling, Mapping) and len(scaling) == 1:
        (only,) = scaling.values()
        if isinstance(only, (int, float)):
            scales[name] = float(only)


def _members(names: Any) -> Iterable[Any]:
    """The members of a set in a pickle, which names them in its call or puts them in later."""
    if isinstance(names, Made):
        given = names.args[0] if names.args and isinstance(names.args[0], list) else []
        return [*names.items, *given]
    return names if isinstance(names, (list, tuple)) else ()
