"""An interruption at any line of the library."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import passportize

ROOT = f"{Path(passportize.__file__).parent}{os.sep}"


class Interrupter:
    """Raises KeyboardInterrupt at the n-th line of the library that is run; counts without n."""

    def __init__(self, number: int = 0) -> None:
        self.number, self.lines, self.place = number, 0, ""

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(ROOT) else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.lines += 1
            if self.lines == self.number:
                file = frame.f_code.co_filename.removeprefix(ROOT)
                self.place = f"{file}:{frame.f_lineno} {frame.f_code.co_name}"
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._line


def interrupted(call: Callable[[], object], number: int) -> Interrupter:
    """Call something and interrupt it at a line of the library; 0 counts the lines alone."""
    interrupter = Interrupter(number)
    tracer = sys.gettrace()
    sys.settrace(interrupter)
    try:
        call()
    except KeyboardInterrupt:
        if not interrupter.place:
            raise
    finally:
        sys.settrace(tracer)
    return interrupter


def lines_of(call: Callable[[], object]) -> int:
    """How many lines of the library a call runs."""
    return interrupted(call, 0).lines
