"""The checks of the coverage sweep on one model. Seconds are of processor time, one thread."""

from __future__ import annotations

import re
import resource
import time
from collections import Counter
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

import passportize as pp
from benchmarks.coverage.libraries import LIBRARIES, Library
from benchmarks.coverage.rows import Row
from benchmarks.coverage.ways import BATCH, build_on_meta, cheapest_way, count
from passportize.errors import NoNormalization
from passportize.signature.site import Role
from passportize.utils.trees import tensors_in
from tests.support.round_trip import (
    ModelSnapshot,
    assert_joint_step,
    assert_same_bits,
    default_criterion,
    forward_outputs,
    is_host_key,
    wake,
)

PASSPORT = pp.Passport.generate(owner="coverage sweep", date="2026-11-28", secret=bytes(range(32)))


def measure(source: str, row: Row, largest: float) -> None:
    """Fill the row of one model.

    Args:
        source: The library that the name is from.
        row: Has the name and the mode.
        largest: Models with more parameters are built with less depth.

    Raises:
        Exception: Whatever went wrong; the row holds what was measured before.
    """
    library = LIBRARIES[source]
    versions = {name: version(name) for name in library.packages}
    versions["passportize"] = pp.__version__
    row.versions = ", ".join(f"{name} {number}" for name, number in versions.items())
    if row.mode == "meta":
        _measure_on_meta(library, row)
    else:
        _measure_for_real(library, row, largest)


def _measure_on_meta(library: Library, row: Row) -> None:
    started = time.process_time()
    model = build_on_meta(library, row.name, {})
    row.build_s = time.process_time() - started
    row.built_with, row.input = "meta device", "default"
    inputs = None
    if library.needs_inputs:
        inputs = torch.empty(BATCH, *library.size(row.name, model), device="meta")
    _plan(row, model, inputs)
    before = ModelSnapshot.of(model)
    _passportize(row, model, before, inputs)
    _restore(row, model, before)


def _measure_for_real(library: Library, row: Row, largest: float) -> None:
    way = cheapest_way(library, row.name, largest)
    row.parameters, row.built_with = way.parameters, way.described
    torch.manual_seed(0)
    base = _peak_mib()
    started = time.process_time()
    model = library.build(row.name, way.arguments)
    row.build_s = time.process_time() - started
    row.build_peak_mib = _peak_mib() - base
    wake(model)
    x = torch.randn(BATCH, *way.size)
    row.input = "x".join(map(str, x.shape))
    inputs = x if library.needs_inputs else None
    _plan(row, model, inputs)
    row.surgery_peak_mib = _peak_mib() - base
    before = ModelSnapshot.of(model)
    plain = {training: forward_outputs(model, x, training) for training in (False, True)}
    _passportize(row, model, before, inputs)
    for training, (output, buffers) in plain.items():
        public, buffers_now = forward_outputs(model, x, training)
        exact = agree(output, public) and agree(buffers, buffers_now)
        setattr(row, "public_train_exact" if training else "public_eval_exact", _word(exact))
        if not training and row.preset == "keyed":
            with pp.branch(model, "private"):
                private, _ = forward_outputs(model, x, training)
            row.private_differs = _word(_finite(private) and not agree(output, private))
    try:
        assert_joint_step(model, x, default_criterion, row.preset == "keyed")
        row.gradients = "yes"
    except AssertionError as error:
        row.gradients = f"no: {error}"[:200]
    _restore(row, model, before)
    if row.restored == "yes":
        again, _ = forward_outputs(model, x, training=False)
        row.restored = _word(agree(plain[False][0], again))
    row.peak_mib = _peak_mib() - base


def _plan(row: Row, model: nn.Module, inputs: Tensor | None) -> None:
    row.parameters = row.parameters or count(model)
    started = time.process_time()
    row.preset = "keyed"
    try:
        planned = pp.plan(model, example_inputs=inputs)
    except NoNormalization:
        row.preset = "signature"
        planned = pp.plan(model, config=pp.PassportConfig.signature(), example_inputs=inputs)
    row.plan_s = time.process_time() - started
    row.norms = len(planned.sites)
    kinds = Counter(site.layer_type for site in planned.sites)
    row.kinds = "; ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
    row.bound = len(planned.role(Role.BOUND))
    row.statistics = len(planned.role(Role.STATISTICS))
    row.skipped = len(planned.role(Role.SKIPPED))
    row.unreached = len(planned.role(Role.UNREACHED))
    reasons = Counter(
        re.sub(r"^a row of \S+", "a row of its anchor", site.reason)
        for site in planned.sites
        if site.reason
    )
    row.reasons = " | ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    row.bits = planned.bits
    row.method = planned.method


def _passportize(row: Row, model: nn.Module, before: ModelSnapshot, inputs: Tensor | None) -> None:
    started = time.process_time()
    config = pp.PassportConfig.preset(row.preset)
    pp.passportize(model, PASSPORT, config=config, example_inputs=inputs)
    row.passportize_s = time.process_time() - started
    keys = [key for key in model.state_dict() if is_host_key(key)]
    row.keys_unchanged = _word(keys == list(before.state))


def _restore(row: Row, model: nn.Module, before: ModelSnapshot) -> None:
    started = time.process_time()
    pp.unpassportize(model)
    row.restore_s = time.process_time() - started
    try:
        before.check(model)
        row.restored = "yes"
    except AssertionError as error:
        row.restored = f"no: {error}"[:200]


def agree(one: Any, other: Any) -> bool:
    """Whether two trees of tensors are the same bit for bit."""
    try:
        assert_same_bits(one, other, "")
    except AssertionError:
        return False
    return True


def _finite(output: Any) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors_in(output))


def _word(right: bool) -> str:
    return "yes" if right else "no"


def _peak_mib() -> int:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
