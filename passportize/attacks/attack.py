"""An attack: what it may use, what it gives back, what it cost, and the table of all attacks.

An attack is a function ``attack(model, means, *, option=default, ...)``. The model is a copy of the
released one, which it may change in place or leave; it returns an :class:`Attacked`, or None if it
changed the model in place at no cost. :func:`passportize.attacks.running.run_attack` runs it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from torch import nn

from passportize.errors import InvalidArgument
from passportize.passport.passport import Passport
from passportize.schemes.scheme import Scheme
from passportize.utils.plugins import Plugins

__all__ = [
    "ATTACKS",
    "KINDS",
    "Attack",
    "Attacked",
    "Forged",
    "Means",
    "attack_names",
    "find_attack",
    "register_attack",
]

KINDS = ("removal", "forgery")


@dataclass(frozen=True)
class Means:
    """What an attacker has, beside the released model and this code.

    Attributes:
        data: Labelled batches ``(inputs, targets)``; read several times.
        inputs: Batches of inputs without labels; those of ``data`` where none are given.
        steps: Optimizer steps that the attacker can afford; of a search, tries.
        learning_rate: Of the attacker's optimizer.
        seed: Of all that the attacker draws.
        passport: The attacker's own.
        scheme: The scheme by which the model was protected: everybody knows it.
        claim: The owner's claim, where it has become known; it holds no secret.
        leaked: The owner's passport, where it was stolen.
        fresh: Makes an untrained model of the released architecture; by default a copy of the
            released one whose layers are reset.
        example_inputs: What to call the model with, as in :func:`passportize.plan`.
        on_step: Called with the steps done and their total.
    """

    data: Iterable[Any] = ()
    inputs: Iterable[Any] = ()
    steps: int = 100
    learning_rate: float = 0.01
    seed: int = 0
    passport: Passport | None = None
    scheme: Scheme | None = None
    claim: Any = None
    leaked: Passport | None = None
    fresh: Callable[[], nn.Module] | None = None
    example_inputs: Any = None
    on_step: Callable[[int, int], None] | None = None


@dataclass(frozen=True)
class Forged:
    """A claim that its maker has no right to.

    Attributes:
        passport: The claimant's.
        claim: What :meth:`passportize.schemes.scheme.Scheme.verify` takes.
    """

    passport: Passport
    claim: Any


@dataclass(frozen=True)
class Attacked:
    """What an attack function returns.

    Attributes:
        model: The attacked model; None if it is the copy that was given.
        forged: The claim that was forged, if one was.
        steps: Optimizer steps taken, or tries.
        samples: Samples used for them, counted as often as they were used.
        figures: Numbers of the attack's own, by their names in the field (``"BDR"``, say).
        notes: What else the reader should know.
    """

    model: nn.Module | None = None
    forged: Forged | None = None
    steps: int = 0
    samples: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()


Function = TypeVar("Function", bound=Callable[..., "Attacked | None"])


@dataclass(frozen=True)
class Attack:
    """One entry of the table.

    Attributes:
        name: As the command line takes it.
        kind: ``"removal"`` or ``"forgery"``.
        function: See the module.
        needs: Fields of :class:`Means` without which it cannot run.
        source: Where it was published.
        expected: What it is known to remove or forge, and what not.
        options: Its keyword arguments with their defaults.
    """

    name: str
    kind: str
    function: Callable[..., Attacked | None]
    needs: tuple[str, ...]
    source: str
    expected: str
    options: Mapping[str, Any]

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]


ATTACKS: Plugins[Attack] = Plugins("attack", "passportize.attacks")


def register_attack(
    name: str,
    *,
    kind: str,
    needs: Sequence[str] = (),
    source: str = "",
    expected: str = "",
) -> Callable[[Function], Function]:
    """Add a function to the table of attacks: a decorator; the function stays as it is.

    Args:
        name: Lower-case letters and digits with hyphens.
        kind: ``"removal"`` or ``"forgery"``.
        needs: Fields of :class:`Means` that must be given. ``"inputs"`` is satisfied by ``data``.
        source: Where it was published.
        expected: What it is known to remove or forge, and what not.

    Raises:
        InvalidArgument: The name is taken, or an argument makes no sense.
    """
    known = {field.name for field in fields(Means)}
    if kind not in KINDS or not set(needs) <= known:
        raise InvalidArgument(
            f"register_attack({name!r}): kind={kind!r} must be one of {', '.join(KINDS)}, and "
            f"needs={list(needs)!r} fields of Means"
        )

    def register(function: Function) -> Function:
        ATTACKS.add(
            name, Attack(name, kind, function, tuple(needs), source, expected, _options(function))
        )
        return function

    return register


def find_attack(name: str) -> Attack:
    """An attack by its name.

    Raises:
        InvalidArgument: There is none of this name.
    """
    return ATTACKS.find(name)


def attack_names(kind: str | None = None) -> list[str]:
    """Names of all attacks, sorted; of one kind only where it is given."""
    return [name for name in ATTACKS.names() if kind in (None, ATTACKS.find(name).kind)]


def _options(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = list(inspect.signature(function).parameters.values())
    extra = [item for item in parameters[2:] if item.kind is item.KEYWORD_ONLY]
    if len(parameters) != 2 + len(extra) or any(item.default is item.empty for item in extra):
        raise InvalidArgument(
            f"{function.__name__}: an attack takes (model, means, *, option=default, ...)"
        )
    return {item.name: item.default for item in extra}
