"""The pytest plugin of ``timm_suite.py``: every test twice, with fresh and with restored models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import timm
import timm.models
import timm.models._factory
import torch
from torch import nn

import passportize as pp
from benchmarks.coverage.rows import read_table
from benchmarks.coverage.timm_suite_names import FRESH, NEEDS_HUB, RESTORED
from passportize.errors import DegenerateSite, ExampleInputRequired, NoNormalization
from passportize.layers.registry import adapter_for

PASSPORT = pp.Passport.generate(owner="timm's tests", date="2026-11-28", secret=bytes(range(32)))

REFUSED = (DegenerateSite, ExampleInputRequired)
"""What a layer by itself may be refused for (three channels, say); models may not."""


def _has_norm(module: nn.Module) -> bool:
    """Whether a layer under test can be passportized; models always can."""
    return any(adapter_for(part) is not None for part in module.modules())


def _parameters() -> dict[str, int]:
    """Parameters of every model name, as the coverage sweep counted them."""
    return {name: int(row["parameters"]) for name, row in read_table("timm", "meta").items()}


class Suite:
    """Runs each test with both kinds of models and hands over its outcome.

    Restored are all models that ``create_model`` returns, and whatever else has a norm and is
    called: the layers that a test puts together by itself.

    Args:
        take: Called with the row of every finished test.
        done: Function, case and kind of models of what was measured before.
        most_parameters: Tests of models with more are left out.
        share: Of each function every n-th case.
    """

    def __init__(
        self,
        take: Callable[[dict[str, str]], None],
        done: set[tuple[str, str, str]],
        most_parameters: float,
        share: int,
    ) -> None:
        self.take = take
        self.done = done
        self.most_parameters = most_parameters
        self.share = share
        self.restoring = False
        self.calling = False
        self.surgeries = 0
        self.seen: dict[int, nn.Module] = {}
        self.versions = f"torch {torch.__version__}, timm {timm.__version__}"

    @contextmanager
    def installed(self) -> Iterator[None]:
        """While it lasts, ``create_model`` and the calling of a module are ours."""
        original, call = timm.create_model, nn.Module.__call__

        def create_model(*args: Any, **kwargs: Any) -> nn.Module:
            model: nn.Module = original(*args, **kwargs)
            return self._restored(model) if self.restoring else model

        def call_module(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self.restoring and not self.calling:
                self.calling = True  # not for what is called inside
                try:
                    if id(module) not in self.seen and _has_norm(module):
                        with suppress(*REFUSED):
                            self._restored(module)
                    return call(module, *args, **kwargs)
                finally:
                    self.calling = False
            return call(module, *args, **kwargs)

        places: tuple[Any, ...] = (timm, timm.models, timm.models._factory)
        for place in places:
            place.create_model = create_model
        nn.Module.__call__ = call_module  # type: ignore[method-assign]
        try:
            yield
        finally:
            nn.Module.__call__ = call  # type: ignore[method-assign]
            for place in places:
                place.create_model = original

    def _restored(self, model: nn.Module) -> nn.Module:
        try:
            pp.passportize(model, PASSPORT, include_frozen=True)
        except NoNormalization:
            pp.passportize(model, PASSPORT, config=pp.PassportConfig.signature())
        self.surgeries += 1
        restored = pp.unpassportize(model)
        # Kept alive, so that no other module gets their numbers.
        self.seen.update((id(part), part) for part in restored.modules())
        return restored

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One more parameter for every test."""
        metafunc.fixturenames.append("models")
        metafunc.parametrize("models", [FRESH, RESTORED])

    def pytest_collection_modifyitems(self, items: list[pytest.Function]) -> None:
        """Leave out large models, most cases if only a share is wanted, and what is done."""
        parameters = _parameters()
        seen: Counter[str] = Counter()
        kept = []
        for item in items:
            function, case, models = _identity(item)
            name = str(item.callspec.params.get("model_name", ""))
            size = parameters.get(name.partition(".")[0], 0)
            if size > self.most_parameters or function in NEEDS_HUB:
                continue
            turn = seen[f"{function} {models}"]
            seen[f"{function} {models}"] += 1
            if turn % self.share == 0 and (function, case, models) not in self.done:
                kept.append(item)
        items[:] = kept

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Function) -> Generator[None, object, object]:
        """The same seed for both kinds of models."""
        torch.manual_seed(0)
        self.surgeries = 0
        self.seen.clear()
        self.restoring = item.callspec.params["models"] == RESTORED
        try:
            return (yield)
        finally:
            self.restoring = False

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Function, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Hand over the outcome of the test itself, or of a setup that failed."""
        report = yield
        if report.when == "call" or (report.when == "setup" and not report.passed):
            function, case, models = _identity(item)
            reason = ""
            if call.excinfo is not None:
                reason = f"{call.excinfo.typename}: {call.excinfo.value}"
            self.take(
                {
                    "function": function,
                    "case": case,
                    "models": models,
                    "outcome": report.outcome,
                    "surgeries": str(self.surgeries),
                    "reason": " ".join(reason.split())[:160].replace("|", "/"),
                    "versions": self.versions,
                }
            )
        return report


def _identity(item: pytest.Function) -> tuple[str, str, str]:
    models = str(item.callspec.params["models"])
    case = "-".join(str(value) for key, value in item.callspec.params.items() if key != "models")
    return item.originalname, case, models
