"""All commands as one: how the whole ends, for those who call it from a script."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from passportize.cli.terminal import ACCEPTED, UNDECIDED, emit, output_lost

__all__ = ["Commands", "command_line"]

# typer brings its own copy of click, or takes the one that is installed, by its version.
_UsageError: Any = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)
_COMPLETION = "_PASSPORTIZE_COMPLETE"
_OWN_ARGUMENTS = ("timm-train",)


class Commands(TyperGroup):
    """The group of all commands. Whatever happens, the exit code is 0, 1 or 2."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command that the arguments name, and end the process with its exit code."""
        arguments = list(sys.argv[1:] if args is None else args)
        code = UNDECIDED
        try:
            code = self._code(arguments, prog_name, complete_var, extra)
            sys.stdout.flush()
        except OSError as error:
            code = UNDECIDED
            output_lost(error)
        if not standalone_mode:
            return code
        sys.exit(code)

    def _code(
        self,
        arguments: list[str],
        prog_name: str | None,
        complete_var: str | None,
        extra: dict[str, Any],
    ) -> int:
        try:
            code = super().main(
                args=arguments,
                prog_name=prog_name,
                complete_var=complete_var,
                standalone_mode=False,
                obj=arguments,
                **extra,
            )
        except _UsageError as error:
            message = error.format_message()
            if _wants_json(arguments):
                emit({"error": "UsageError", "message": message}, "", as_json=True)
            else:
                error.show()
            return UNDECIDED
        except (typer.Abort, KeyboardInterrupt):
            sys.stderr.write("error: interrupted\n")
            return UNDECIDED
        except SystemExit:
            # Commands do not come here. Shells that ask for completions do, and a lost output.
            if _COMPLETION in os.environ:
                raise
            return UNDECIDED
        return code if isinstance(code, int) else ACCEPTED


def command_line(context: typer.Context) -> list[str]:
    """The arguments of this run, as they were given."""
    given = context.find_root().obj
    return list(given) if isinstance(given, list) else []


def _wants_json(arguments: Sequence[str]) -> bool:
    """Whether a command line that makes no sense asks for JSON all the same."""
    return "--json" in arguments and not {*arguments[:1]} & {*_OWN_ARGUMENTS}
