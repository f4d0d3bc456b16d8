"""Where the batch can be doubled late, so that the part of a model before it runs once.

When only later norms are bound, the private rows would run through the first layers as a copy of
the public ones. If all bound norms lie behind one module with a single input, the batch is doubled
there instead. Whether that is so is not read from the model's code but tried on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import nn

from passportize.layers.batch import append_rows
from passportize.signature.site import Role, Site
from passportize.tracing.example_inputs import ExampleInputs, random_inputs
from passportize.utils.frozen import close, trial
from passportize.utils.trees import tensors_in

__all__ = ["LateEntry", "find_late_entry"]


class LateEntry(NamedTuple):
    """A module at whose input the batch can be doubled.

    Attributes:
        name: Its dotted name.
        trunk: Names of the sites that run before it, and need no private statistics then.
    """

    name: str
    trunk: frozenset[str]


def find_late_entry(
    model: nn.Module, sites: Sequence[Site], example_inputs: Any = None
) -> LateEntry | None:
    """The latest module that every bound norm lies behind, or None.

    It is called once, takes one tensor, and behind it samples do not meet: with some of them
    appended at its input, the model gives the same outputs with the same ones appended. The model
    is left as it was.

    Args:
        model: A plain model.
        sites: Bound sites and those with private statistics.
        example_inputs: As ``passportize`` takes them; timm models need none.
    """
    inputs = _inputs(model, example_inputs)
    bound = [site.name for site in sites if site.role is Role.BOUND]
    if inputs is None or not bound or any(not name for name in bound):
        return None
    rows = next((int(t.shape[0]) for _, t in inputs.tensors() if t.dim()), 0)
    if rows < 2:
        return None
    modules = dict(model.named_modules())
    ancestors = {above for name in bound for above in _ancestors(name)}
    watched = [name for name in modules if name in ancestors or name in {s.name for s in sites}]
    try:
        order, single = _recorded(model, modules, watched, inputs, rows)
    except Exception:  # whatever a foreign model raises when it is tried, the root will do
        return None
    first = next((name for name in order if name in bound), "")
    for name in _ancestors(first):
        if order.count(name) != 1 or not single[name]:
            continue
        before = order[: order.index(name)]
        if set(before) & set(bound):
            continue
        if _rows_stay_apart(model, modules[name], inputs, rows):
            others = {site.name for site in sites if site.role is not Role.BOUND}
            return LateEntry(name, frozenset(others & set(before)))
    return None


def _ancestors(name: str) -> Iterator[str]:
    """Names of the modules around one, the innermost first, without the root."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _inputs(model: nn.Module, example_inputs: Any) -> ExampleInputs | None:
    if example_inputs is not None:
        given = ExampleInputs.of(example_inputs)
        return given if given.runner is None and given.is_real else None
    parameter = next(model.parameters(), None)
    if parameter is None or parameter.is_meta:
        return None
    return random_inputs(model)


def _recorded(
    model: nn.Module,
    modules: dict[str, nn.Module],
    watched: Sequence[str],
    inputs: ExampleInputs,
    rows: int,
) -> tuple[list[str], dict[str, bool]]:
    """In which order modules are called, and whether with one tensor whose rows are samples."""
    order: list[str] = []
    single: dict[str, bool] = {}

    def watch(name: str) -> None:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            order.append(name)
            tensors = list(tensors_in((args, kwargs)))
            single[name] = (
                len(tensors) == 1
                and bool(args)
                and tensors[0] is args[0]
                and tensors[0].dim() > 0
                and tensors[0].shape[0] == rows
            )

        modules[name].register_forward_pre_hook(note, with_kwargs=True)

    with trial(model):
        for name in watched:
            watch(name)
        inputs.copy().call(model.eval())
    return order, single


def _rows_stay_apart(model: nn.Module, entry: nn.Module, inputs: ExampleInputs, rows: int) -> bool:
    """Whether rows appended at the entry come out as the rows that they repeat."""
    share = rows - 1

    def append(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (append_rows(args[0], share), *args[1:])

    with trial(model):
        try:
            plain = list(tensors_in(inputs.copy().call(model.eval())))
            entry.register_forward_pre_hook(append)
            doubled = list(tensors_in(inputs.copy().call(model)))
            # Heads that run in training only must be behind the entry, too.
            training = list(tensors_in(inputs.copy().call(model.train())))
        except Exception:  # sizes that do not fit, for the most part
            return False
    if len(plain) != len(doubled):
        return False
    if any(tensor.dim() and tensor.shape[0] != rows + share for tensor in (*doubled, *training)):
        return False
    return all(
        close(both[:rows], once) and close(both[rows:], once[:share])
        for once, both in zip(plain, doubled, strict=True)
        if once.dim()
    )
