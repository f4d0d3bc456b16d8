"""What commands print, and how they end.

Results go to standard output, everything else to standard error; with ``--json`` standard output
holds one JSON document and nothing else. Exit codes: 0 accepted or done, 1 refused, 2 everything
else, whatever is raised.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.progress import Progress, track

from passportize.errors import PassportizeError

__all__ = [
    "ACCEPTED",
    "REFUSED",
    "UNDECIDED",
    "AsJson",
    "command",
    "emit",
    "leave",
    "output_lost",
    "progress",
    "show_failure",
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
        text = json.dumps(_finite(record), indent=2, allow_nan=False)
    try:
        typer.echo(text)
        sys.stdout.flush()
    except OSError as error:
        output_lost(error)
        leave(UNDECIDED)


def output_lost(error: OSError) -> None:
    """Say that the result did not reach whom it was for: a full disk, a reader that is gone."""
    # Standard error may be gone as well; the exit code is still right.
    with suppress(OSError):
        sys.stderr.write(f"error: standard output: {error.strerror or error}\n")
        sys.stderr.flush()
    # Python flushes once more at the end, which must have nothing to complain about.
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Leave(Exception):
    """Ends a command; nobody else's exception does, a model's code that calls sys.exit(0) say."""

    def __init__(self, code: int) -> None:
        self.code = code


def leave(code: int) -> NoReturn:
    """End the command with this exit code."""
    raise _Leave(code)


def command(function: Callable[..., None]) -> Callable[..., int]:
    """A command that gives its exit code, whatever is raised in it.

    Errors of passportize are one clear message without a traceback; anything else is a mistake of
    ours, or of code that the user brought, and is shown with where it happened.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> int:
        with _warnings_shown():
            try:
                function(*args, **kwargs)
                return ACCEPTED
            except _Leave as end:
                return end.code
            except BaseException as error:
                show_failure(error, bool(kwargs.get("as_json")))
                return UNDECIDED

    # typer must not take the exit code for something to print.
    run.__annotations__ = {**function.__annotations__, "return": None}
    return run


def show_failure(error: BaseException, as_json: bool) -> None:
    """Show an exception as what it means for the user: text on standard error, or JSON."""
    foreign = not isinstance(error, PassportizeError)
    message = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
    if foreign and not isinstance(error, KeyboardInterrupt):
        traceback.print_exception(error, file=sys.stderr)
        message = f"unexpected {type(error).__name__}" + (f": {message}" if message else "")
    if as_json:
        emit({"error": type(error).__name__, "message": message}, "", as_json)
    else:
        errors().print("[bold red]error:[/] ", end="")
        errors().print(message, markup=False)


@contextmanager
def _warnings_shown() -> Iterator[None]:
    """Show warnings as one line each."""
    shown: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        text = str(message)
        if text not in shown:
            shown.add(text)
            errors().print(f"warning: {text}", markup=False)

    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = show
        yield


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


@contextmanager
def counting(title: str, as_json: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on standard error for work that counts itself; nothing where there is no terminal.

    Gives what to call with how many steps are done, and how many there are. The bar is there from
    the first step to the last one, so that another may follow.
    """
    console = errors()
    if as_json or not console.is_terminal:
        yield None
        return
    bar = Progress(console=console, transient=True)
    task = bar.add_task(title, total=None)

    def step(done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)
        if done >= total:
            bar.stop()

    try:
        yield step
    finally:
        bar.stop()


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
