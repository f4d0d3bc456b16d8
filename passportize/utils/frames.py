"""Errors that leave a function without the frames below it, whose variables hold secrets."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["without_frames"]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def without_frames(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Let what a function raises, an interruption too, begin its traceback here.

    Error reporters write the local variables of every frame of a traceback, with what is hidden
    from a repr in them. So functions that hold a secret or a passphrase in a variable let no frame
    out: neither theirs nor those of errors that theirs came from.
    """

    @functools.wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            failure = error
        # What was given is in a variable of this frame as well.
        del args, kwargs
        each: BaseException | None = failure
        seen: set[int] = set()
        while each is not None and id(each) not in seen:
            seen.add(id(each))
            each.__traceback__ = None
            each = each.__cause__ or each.__context__
        raise failure

    return call
