"""How the demo tells its story: numbered steps, statements that are checked, progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from passportize.demo.recipe import Step
from passportize.errors import DemoFailed, MissingExtra

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Story", "quiet_console"]


def quiet_console() -> Console:
    """A console that shows nothing.

    Raises:
        MissingExtra: rich is not installed.
    """
    try:
        from rich.console import Console
    except ImportError as error:
        raise MissingExtra(
            "the demo needs rich, which is not installed: pip install 'passportize[demo]'"
        ) from error
    return Console(quiet=True)


class Story:
    """Tells a story on a console and remembers which statements held.

    Attributes:
        statements: What was said, and whether it held.
    """

    def __init__(self, console: Console, steps: int) -> None:
        self.console = console
        self.steps = steps
        self.statements: list[tuple[str, bool]] = []
        self._number = 0

    def step(self, title: str) -> None:
        """Begin the next step."""
        self._number += 1
        self.console.print()
        self.console.print(f"[bold blue]{self._number}/{self.steps}[/]  [bold]{title}[/]")

    def say(self, text: str) -> None:
        """A line of the current step, as it is."""
        self.console.print(f"     {text}", markup=False, highlight=False, soft_wrap=True)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A small table; the first column names the rows."""
        from rich.table import Table

        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for index, name in enumerate(header):
            table.add_column(name, justify="right" if index else "left")
        for row in rows:
            table.add_row(*row)
        from rich.padding import Padding

        self.console.print(Padding(table, (0, 0, 0, 5)))

    def state(self, text: str, held: bool) -> None:
        """Say what is to be shown, with a mark for whether it held."""
        self.statements.append((text, bool(held)))
        mark, colour = ("ok", "green") if held else ("FAILED", "bold red")
        self.console.print(f"     [{colour}]{mark}[/]  ", end="")
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def check(self) -> None:
        """Raise if a claim did not hold.

        Raises:
            DemoFailed: With every claim that failed.
        """
        failed = [text for text, held in self.statements if not held]
        if failed:
            raise DemoFailed(
                f"the demo did not show {len(failed)} of the {len(self.statements)} things that it "
                f"says: {'; '.join(failed)}. With few epochs or other data that can happen; "
                "with the defaults it is a bug, please report it with the files"
            )

    @contextmanager
    def training(self, title: str) -> Iterator[Callable[[Step], None]]:
        """A progress bar for :func:`passportize.demo.recipe.train`."""
        with self.counting(title) as advance:
            yield lambda step: advance(step.number, step.total)

    @contextmanager
    def counting(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """A progress bar; call what it gives with how much is done and how much there is."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        columns = (
            TextColumn("     {task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            Remaining(),
        )
        # Gone when it is done; nothing at all where there is no terminal.
        shown = self.console.is_terminal and not self.console.quiet
        with Progress(*columns, console=self.console, transient=True, disable=not shown) as bar:
            task = bar.add_task(title, total=None)

            def advance(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            yield advance
