"""What commands print, and how they end.

Results go to standard output, everything else to standard error; with ``--json`` standard output
holds one JSON document and nothing else. Exit codes: 0 accepted or done, 1 refused, 2 could not
judge or could not do it.
"""

from __future__ import annotations

import functools
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import track

from passportize.errors import PassportizeError

__all__ = [
    "ACCEPTED",
    "REFUSED",
    "UNDECIDED",
    "AsJson",
    "command",
    "emit",
    "errors_shown",
    "leave",
    "progress",
    "results",
    "working",
]

ACCEPTED, REFUSED, UNDECIDED = 0, 1, 2

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]

Item = TypeVar("Item")


def results() -> Console:
    """Standard output."""
    return Console(soft_wrap=True, highlight=False)


def errors() -> Console:
    """Standard error."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


def emit(record: dict[str, Any], text: str, as_json: bool) -> None:
    """Print a result, as a JSON document or as text."""
    if as_json:
        # No NaN: it is not JSON.
        typer.echo(json.dumps(_finite(record), indent=2, allow_nan=False))
    else:
        typer.echo(text)


def leave(code: int) -> None:
    """End the command with this exit code."""
    if code:
        raise typer.Exit(code)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose errors are one clear message and exit code 2, without a traceback."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        with errors_shown(bool(kwargs.get("as_json"))):
            function(*args, **kwargs)

    return run


@contextmanager
def errors_shown(as_json: bool = False) -> Iterator[None]:
    """Show errors of passportize as one message, and warnings as one line each."""
    shown: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        text = str(message)
        if text not in shown:
            shown.add(text)
            errors().print(f"warning: {text}", markup=False)

    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = show
        try:
            yield
        except PassportizeError as error:
            if as_json:
                record = {"error": type(error).__name__, "message": str(error)}
                typer.echo(json.dumps(record, indent=2))
            else:
                errors().print("[bold red]error:[/] ", end="")
                errors().print(str(error), markup=False)
            raise typer.Exit(UNDECIDED) from None


@contextmanager
def working(title: str, as_json: bool) -> Iterator[None]:
    """A spinner while something takes its time; nothing where there is no terminal."""
    console = errors()
    if as_json or not console.is_terminal:
        yield
        return
    with console.status(title):
        yield


def progress(items: Iterable[Item], title: str, as_json: bool) -> Iterable[Item]:
    """The same items, with a bar on standard error; nothing where there is no terminal."""
    console = errors()
    if as_json or not console.is_terminal:
        return items
    total = len(items) if isinstance(items, Sequence) else None
    return track(items, description=title, total=total, console=console, transient=True)


def is_interactive() -> bool:
    """Whether there is a person to ask."""
    return sys.stdin is not None and sys.stdin.isatty()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
