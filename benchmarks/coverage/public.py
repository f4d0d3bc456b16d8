r"""Public models beyond timm: right, or a clear refusal, and what asking costs.

Models of libraries that know nothing of passports, with random weights, called as in training.
Nothing of them is part of this project; what does not belong to the tests goes into a folder of its
own:

    pip install --no-deps --target packages segmentation-models-pytorch==0.6.0 monai==1.6.1 \
        ultralytics==8.4.190 spikingjelly==2.0.0 opencv-python-headless psutil loguru
    PYTHONPATH=packages python -m benchmarks.coverage.public

Rows are appended to ``results/public_models.csv`` as they come, so a run that is killed goes on
where it stopped; a model whose package is missing gets none.
"""

from __future__ import annotations

import argparse
import copy
import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import passportize as pp
from benchmarks.common.csv_rows import append_row, read_rows
from benchmarks.common.paths import RESULTS
from benchmarks.coverage.checks import agree
from benchmarks.coverage.public_models import MODELS, Public
from passportize.errors import PassportizeError
from passportize.layers.model import switch_of
from passportize.signature.site import Role
from passportize.utils.files import write_atomically
from passportize.utils.trees import call_model, tensors_in
from tests.support.round_trip import ModelSnapshot, default_criterion, is_host_key

OUT = RESULTS / "public_models.csv"
PASSPORT = pp.Passport.generate(owner="public models", date="2026-11-28", secret=bytes(range(32)))
COLUMNS = (
    *("package", "model", "preset", "norms", "bound", "bits", "passes", "why", "exact"),
    *("joint_off", "private", "restored", "surgery_s", "check_s", "step_s", "error", "torch"),
)
HEAD = """# Public models

Measured by `python -m benchmarks.coverage.public` on one CPU thread, torch {torch}: {count}
models of {packages}, small where the library lets one choose, random weights, called as in
training. A joint step is compared with the plain model's own step from the same random state.

- "passes": what the example settled on by itself; "why" is what the log says where it is two.
- "public": output and statistics of the public branch beside the plain model's, in training and in
  eval mode; a joint step beside a plain one, off by at most so much of the largest value
  (sums over a larger batch are rounded otherwise; dropout is off).
- "surgery" and "check": seconds for `passportize` without and with the check of the joint pass,
  the second as training steps of the plain model on the same batch.

"""


@contextmanager
def _notes() -> Iterator[list[str]]:
    """What the library says."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("passportize")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def _calm(model: nn.Module) -> nn.Module:
    """Without dropout and stochastic depth, whose masks depend on the size of a batch."""
    for module in model.modules():
        for name, value in vars(module).copy().items():
            if (name == "p" or "drop" in name) and isinstance(value, float):
                setattr(module, name, 0.0)
    config = getattr(model, "config", None)
    for name, value in getattr(config, "__dict__", {}).copy().items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    return model


def _size(value: Any) -> float:
    return max((float(t.detach().abs().max()) for t in tensors_in(value) if t.numel()), default=0)


def _off(one: Any, other: Any) -> float:
    """The largest difference, as a share of the largest value."""
    pairs = list(zip(tensors_in(one), tensors_in(other), strict=True))
    floats = [(a.double(), b.double()) for a, b in pairs if a.is_floating_point() and a.numel()]
    if any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    largest = max((float((a - b).detach().abs().max()) for a, b in floats), default=0.0)
    return largest / max(_size(one), 1e-12)


def measure(public: Public) -> dict[str, Any]:
    """The row of one model; what goes wrong stands in it."""
    row: dict[str, Any] = dict.fromkeys(COLUMNS, "")
    row |= {"package": f"{public.package} {version(public.package)}", "model": public.name}
    row["torch"] = torch.__version__
    torch.manual_seed(0)
    model, inputs = _calm(public.build()).train(), public.inputs()

    def criterion(output: Any, targets: Any) -> Tensor:
        return default_criterion(output, targets) if public.loss is None else public.loss(output)

    config = pp.PassportConfig.preset(public.config)
    row["preset"] = public.config
    plain = copy.deepcopy(model)
    torch.manual_seed(1)
    expected = call_model(plain, inputs)
    state = {key: value.clone() for key, value in plain.state_dict().items()}
    _step(plain, inputs, criterion)
    started = time.process_time()
    _step(plain, inputs, criterion)
    row["step_s"] = time.process_time() - started
    before = ModelSnapshot.of(model)
    try:
        plan = pp.plan(model, config=config, example_inputs=inputs, check=False)
        row |= {"norms": len(plan.sites), "bound": len(plan.role(Role.BOUND)), "bits": plan.bits}
        for _ in range(2):  # what a first call keeps makes the second one shorter
            started = time.process_time()
            pp.passportize(model, PASSPORT, config=config, example_inputs=inputs, check=False)
            row["surgery_s"] = time.process_time() - started
            pp.unpassportize(model)
        before.check(model)  # now, since many models keep things of their last forward pass
        with _notes() as notes:
            started = time.process_time()
            pp.passportize(model, PASSPORT, config=config, example_inputs=inputs)
            row["check_s"] = time.process_time() - started - row["surgery_s"]
        switch = switch_of(model)
        row["passes"] = switch.config.passes if switch.config.has_private_pass else "none"
        row["why"] = switch.reason or "; ".join(note for note in notes if "not check" in note)
        torch.manual_seed(1)
        public_output = call_model(model, inputs)
        now = {key: value for key, value in model.state_dict().items() if is_host_key(key)}
        row["exact"] = agree(expected, public_output) and agree(state, now)
        model.load_state_dict(before.state, strict=False)
        torch.manual_seed(1)
        joint = pp.joint_loss(model, inputs, None, criterion)
        row["joint_off"] = f"{_off(expected, joint.output):.0e}"
        if switch.config.has_private_pass:
            row["private"] = (
                f"{_off(expected, joint.private_output):.0e}"
                if _alike(expected, joint.private_output)
                else "other samples"
            )
        joint.total.backward()
        switch.trained = False
        model.load_state_dict(before.state, strict=False)
        model.zero_grad(set_to_none=True)
        pp.unpassportize(model)
        classes = [
            (name, type(module)) for name, module in model.named_modules(remove_duplicate=False)
        ]
        state = model.state_dict()
        row["restored"] = (
            classes == [(name, kind) for name, _, kind in before.modules]
            and list(state) == list(before.state)
            and agree(before.state, dict(state))
        )
    except PassportizeError as error:
        row["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    except Exception as error:  # what a model or a check of this file raises is a result, too
        row["error"] = f"FAULT {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return row


def _alike(one: Any, other: Any) -> bool:
    first, second = list(tensors_in(one)), list(tensors_in(other))
    return [tensor.shape for tensor in first] == [tensor.shape for tensor in second]


def _step(model: nn.Module, inputs: Any, criterion: Any) -> None:
    loss: Tensor = criterion(call_model(model, inputs), None)
    loss.backward()


def page(rows: list[dict[str, str]]) -> str:
    """The results as Markdown."""
    packages = sorted({row["package"] for row in rows})
    builds = ", ".join(sorted({row["torch"] for row in rows}))
    text = HEAD.format(torch=builds, count=len(rows), packages=", ".join(packages))
    lines = [
        "| model | of | norms, bound | bits | passes | why two | public exact | joint off by | "
        "restored | surgery s | check, steps |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["error"]:
            lines.append(
                f"| {row['model']} | {row['package']} | {row['norms']}, {row['bound']} | "
                f"{row['bits']} | {row['error'].replace('|', '/')} | | | | | | |"
            )
            continue
        steps = float(row["check_s"]) / max(float(row["step_s"]), 1e-3)
        lines.append(
            f"| {row['model']} | {row['package']} | {row['norms']}, {row['bound']} | {row['bits']} "
            f"| {row['passes']} | {row['why'].replace('|', '/')} | {_yes(row['exact'])} | "
            f"{row['joint_off']} | {_yes(row['restored'])} | {float(row['surgery_s']):.2f} | "
            f"{steps:.1f} |"
        )
    return text + "\n".join(lines) + "\n"


def _yes(word: str) -> str:
    return "yes" if word == "True" else "NO"


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression in plain torch, for builds of torchvision without its operations."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left, kept = scores.argsort(descending=True), []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        low = torch.maximum(boxes[best, :2], boxes[left, :2])
        high = torch.minimum(boxes[best, 2:], boxes[left, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        left = left[shared <= threshold * (areas[best] + areas[left] - shared)]
    return torch.stack(kept) if kept else torch.zeros(0, dtype=torch.int64)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", help="some of them; all by default")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if not torchvision.extension._has_ops():
        torchvision.ops.boxes.nms = nms
    done = {(row["package"].rsplit(" ", 1)[0], row["model"]) for row in read_rows(arguments.out)}
    for public in MODELS:
        if (public.package, public.name) in done:
            continue
        if arguments.models and public.name not in arguments.models:
            continue
        try:
            row = measure(public)
        except (ImportError, PackageNotFoundError) as error:
            print(f"{public.package}, {public.name}: {error}")
            continue
        print(row, flush=True)
        append_row(arguments.out, row)
    text = page(read_rows(arguments.out))
    write_atomically(arguments.out.with_suffix(".md"), text.encode(), overwrite=True)


if __name__ == "__main__":
    main()
