"""The checks of the coverage sweep on one model. Seconds are of processor time, one thread."""

from __future__ import annotations

import re
import resource
import sys
import time
import warnings
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import timm
import torch
import torchvision
from torch import Tensor, nn

import passportize as pp
from passportize.errors import NoNormalization
from passportize.site import Role
from passportize.tensor_trees import tensors_in

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from round_trip import (
    ModelSnapshot,
    assert_joint_step,
    assert_same_bits,
    default_criterion,
    forward_outputs,
    is_host_key,
    wake,
)

if TYPE_CHECKING:
    from coverage import Row

PASSPORT = pp.Passport.generate(owner="coverage sweep", secret=bytes(range(32)))
SIZES = (64, 128)
DEPTH_CUTS: tuple[dict[str, Any], ...] = (
    {"depth": 2},
    {"depths": (1, 1, 1, 1)},
    {"depths": (1, 1, 1)},
    {"layers": (1, 1, 1, 1)},
    {"stem_width": 32, "base_width": 16, "cardinality": 8},
    {"block_args": None, "channel_multiplier": 0.25},
)
BATCH = 2

torch.set_num_threads(1)


def model_names(library: str) -> list[str]:
    """Every name that a library registers; of torchvision those for images.

    Of transformers, which builds models from configs, the small ones of the tests.
    """
    if library == "timm":
        return list(timm.list_models())
    if library == "transformers":
        import transformers_models

        return list(transformers_models.MODELS)
    modules = (torchvision.models, torchvision.models.segmentation)
    return [name for module in modules for name in torchvision.models.list_models(module=module)]


def _build(library: str, name: str, arguments: dict[str, Any]) -> nn.Module:
    if library == "timm":
        return cast(nn.Module, timm.create_model(name, **arguments))
    if library == "transformers":
        import transformers_models

        return transformers_models.build(name)
    if name in torchvision.models.list_models(module=torchvision.models.segmentation):
        arguments = {"weights_backbone": None, **arguments}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # how some of them used to initialise
        return cast(nn.Module, torchvision.models.get_model(name, weights=None, **arguments))


def _build_on_meta(library: str, name: str, arguments: dict[str, Any]) -> nn.Module:
    try:
        with torch.device("meta"):
            return _build(library, name, arguments)
    except NotImplementedError:  # torchvision's RegNet computes its widths with tensors
        return _build(library, name, arguments).to("meta")


def _default_size(library: str, name: str, model: nn.Module) -> tuple[int, ...]:
    if library == "transformers":
        import transformers_models

        return transformers_models.image_size(name)
    config = getattr(model, "default_cfg", None)
    return tuple(config["input_size"]) if config is not None else (3, 224, 224)


def measure(library: str, row: Row, largest: float) -> None:
    """Fill the row of one model.

    Args:
        library: Where the name is from.
        row: Has the name and the mode.
        largest: Models with more parameters are built with less depth.

    Raises:
        Exception: Whatever went wrong; the row holds what was measured before.
    """
    versions = {"torch": torch.__version__, "timm": timm.__version__}
    if library == "transformers":
        versions = {"torch": torch.__version__, library: version(library)}
    versions["passportize"] = pp.__version__
    row.versions = ", ".join(f"{name} {number}" for name, number in versions.items())
    if row.mode == "meta":
        _measure_on_meta(library, row)
    else:
        _measure_for_real(library, row, largest)


def _measure_on_meta(library: str, row: Row) -> None:
    started = time.process_time()
    model = _build_on_meta(library, row.name, {})
    row.build_s = time.process_time() - started
    row.built_with, row.input = "meta device", "default"
    inputs = None
    if library != "timm":
        inputs = torch.empty(BATCH, *_default_size(library, row.name, model), device="meta")
    _plan(row, model, inputs)
    before = ModelSnapshot.of(model)
    _passportize(row, model, before, inputs)
    _restore(row, model, before)


def _measure_for_real(library: str, row: Row, largest: float) -> None:
    arguments, size = _reduced(library, row, largest)
    torch.manual_seed(0)
    base = _peak_mib()
    started = time.process_time()
    model = _build(library, row.name, arguments)
    row.build_s = time.process_time() - started
    row.build_peak_mib = _peak_mib() - base
    wake(model)
    x = torch.randn(BATCH, *size)
    row.input = "x".join(map(str, x.shape))
    inputs = x if library != "timm" else None
    _plan(row, model, inputs)
    row.surgery_peak_mib = _peak_mib() - base
    before = ModelSnapshot.of(model)
    plain = {training: forward_outputs(model, x, training) for training in (False, True)}
    _passportize(row, model, before, inputs)
    for training, (output, buffers) in plain.items():
        public, buffers_now = forward_outputs(model, x, training)
        exact = _agree(output, public) and _agree(buffers, buffers_now)
        setattr(row, "public_train_exact" if training else "public_eval_exact", _word(exact))
        if not training and row.preset == "keyed":
            with pp.branch(model, "private"):
                private, _ = forward_outputs(model, x, training)
            row.private_differs = _word(_finite(private) and not _agree(output, private))
    try:
        assert_joint_step(model, x, default_criterion, row.preset == "keyed")
        row.gradients = "yes"
    except AssertionError as error:
        row.gradients = f"no: {error}"[:200]
    _restore(row, model, before)
    if row.restored == "yes":
        again, _ = forward_outputs(model, x, training=False)
        row.restored = _word(_agree(plain[False][0], again))
    row.peak_mib = _peak_mib() - base


def _plan(row: Row, model: nn.Module, inputs: Tensor | None) -> None:
    row.parameters = row.parameters or sum(tensor.numel() for tensor in model.parameters())
    started = time.process_time()
    row.preset = "keyed"
    try:
        planned = pp.plan(model, example_inputs=inputs)
    except NoNormalization:
        row.preset = "signature"
        planned = pp.plan(model, config=pp.PassportConfig.signature(), example_inputs=inputs)
    row.plan_s = time.process_time() - started
    row.norms = len(planned.sites)
    kinds = Counter(site.norm_type for site in planned.sites)
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
    config = getattr(pp.PassportConfig, row.preset)()
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


def _reduced(library: str, row: Row, largest: float) -> tuple[dict[str, Any], tuple[int, ...]]:
    """The first cheaper way to build and call the model that works on the meta device."""
    full = _try_on_meta(library, row.name, {}, None)
    assert full is not None, "the model does not run on the meta device"
    row.parameters, default = full
    cuts: tuple[dict[str, Any], ...] = ({},)
    if row.parameters > largest:
        cuts = (*DEPTH_CUTS, {})
    for cut in cuts:
        for size in SIZES if library != "transformers" else ():
            smaller = (default[0], size, size)
            if size >= default[-1]:
                continue
            for arguments in (cut, {**cut, "img_size": size}):
                if _try_on_meta(library, row.name, arguments, smaller) is not None:
                    row.built_with = _described(arguments)
                    return arguments, smaller
        if _try_on_meta(library, row.name, cut, default) is not None:
            row.built_with = "a small config" if library == "transformers" else _described(cut)
            return cut, default
    raise AssertionError("no way to build the model runs on the meta device")


def _try_on_meta(
    library: str, name: str, arguments: dict[str, Any], size: tuple[int, ...] | None
) -> tuple[int, tuple[int, ...]] | None:
    """Parameters and default input size, or None where it cannot be built or called."""
    try:
        model = _build_on_meta(library, name, arguments).eval()
        with torch.device("meta"), torch.no_grad():
            default = _default_size(library, name, model)
            if size is not None:
                model(torch.empty(BATCH, *size))
                if size != default:
                    model.train()(torch.empty(BATCH, *size))
    except Exception:  # whatever a model raises on arguments or sizes that it does not take
        return None
    return sum(tensor.numel() for tensor in model.parameters()), default


def _described(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in arguments.items()) or "default"


def _agree(one: Any, other: Any) -> bool:
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
