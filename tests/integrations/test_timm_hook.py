"""Training scripts in timm's style, one for each generation of its API, under the launcher."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import passportize as pp
from tests.support.gloo import run_ranks

pytest.importorskip("timm")
import timm
import timm.loss
import timm.optim
import timm.task
import timm.utils

from passportize.errors import (
    AlreadyPassportized,
    BranchMisuse,
    CheckpointError,
    InvalidArgument,
    PassportFileError,
    TrainingError,
    WrongPassport,
)
from passportize.integrations.patches import Patches
from passportize.integrations.timm import PassportTask, launch
from passportize.integrations.timm.options import PASSPHRASE
from passportize.integrations.timm.release import claim_checkpoint, restore_checkpoint
from passportize.integrations.timm.session import Session, prepare
from passportize.layers.model import passport_layers
from passportize.layers.private_keys import private_keys
from passportize.release.checkpoint import read_checkpoint
from passportize.release.strip import strip_checkpoint

SCRIPTS = Path(__file__).parent / "train_scripts"
GENERATIONS = ("train_without_tasks", "train_with_task", "train_task_first")
PASSPORT = pp.Passport.generate("Hooked", date="2026-01-01", secret=bytes(range(32)))
CLASSES = 4


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Bits are compared with those of processes that have one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def passport(tmp_path: Path) -> Path:
    path = tmp_path / "owner.passport"
    PASSPORT.save(path)
    return path


def run(passport: Path, script: str, output: Path, *arguments: str, own: tuple = ()) -> None:
    launch(
        [
            *("--passport", str(passport), *own, str(SCRIPTS / f"{script}.py")),
            *("--output", str(output), *arguments),
        ]
    )


def last(output: Path) -> dict:
    return read_checkpoint(output / "last.pth.tar")


def assert_same(left: object, right: object, place: str = "") -> None:
    assert type(left) is type(right), place
    if isinstance(left, Tensor):
        assert torch.equal(left, right), place
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), place
        for key, value in left.items():
            assert_same(value, right[key], f"{place}.{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), place
        for index, pair in enumerate(zip(left, right, strict=True)):
            assert_same(*pair, f"{place}[{index}]")
    else:
        assert left == right, place


def assert_releasable(output: Path, own_state: bool) -> None:
    """Public branch and plain model agree bit for bit, the signature is complete."""
    content = last(output)
    assert own_state != bool(private_keys(content["state_dict"]))
    x = torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(3))
    for ema in (False, True):
        restored = restore_checkpoint(output / "last.pth.tar", PASSPORT, ema=ema, model=fresh())
        plain_file = output / f"plain_{ema}.pth"
        left_out = strip_checkpoint(output / "last.pth.tar", plain_file, ema=ema)
        assert (left_out == 0) == own_state
        assert b"passport" not in plain_file.read_bytes()
        plain = timm.create_model(
            "test_resnet", num_classes=CLASSES, checkpoint_path=str(plain_file)
        ).eval()
        with torch.no_grad():
            assert torch.equal(plain(x), restored(x))
        assert pp.signature_accuracy(restored) == 1.0
    if own_state:
        timm.create_model(
            "test_resnet", num_classes=CLASSES, checkpoint_path=str(output / "last.pth.tar")
        )


def fresh() -> nn.Module:
    return timm.create_model("test_resnet", num_classes=CLASSES)


HARD = ("--amp", "--model-ema", "--accumulate", "2", "--grad-checkpointing", "--steps", "8")


def train_and_resume(rank: int, passport: str, script: str, folder: str) -> list[str]:
    torch.use_deterministic_algorithms(True)
    root = Path(folder)
    whole, parts = root / "whole", root / "parts"
    run(Path(passport), script, whole, *HARD, "--epochs", "4")
    run(Path(passport), script, parts, *HARD, "--epochs", "2")
    again = ("--epochs", "4", "--resume", str(parts / "last.pth.tar"))
    run(Path(passport), script, root / "again", *HARD, *again)
    return sys.argv


@pytest.mark.parametrize("script", GENERATIONS)
def test_two_processes_with_everything_on_and_resumed(
    script: str, passport: Path, tmp_path: Path
) -> None:
    run_ranks(2, train_and_resume, str(passport), script, str(tmp_path), group=False)
    whole, again = last(tmp_path / "whole"), last(tmp_path / "again")
    assert whole["epoch"] == again["epoch"] == 3
    for key in ("state_dict", "state_dict_ema", "optimizer", "task_state", "task_state_ema"):
        assert_same(whole.get(key), again.get(key), key)
    assert_releasable(tmp_path / "again", script == "train_task_first")
    for file in (tmp_path / "whole").iterdir():
        assert str(passport).encode() not in file.read_bytes(), file.name


def train_until_killed(rank: int, passport: str, script: str, output: str, own: tuple) -> None:
    run(Path(passport), script, Path(output), "--model-ema", "--kill-at", "6", own=own)


@pytest.mark.parametrize(
    "own", [(), ("--no-embed", "--set", "sign_every=3")], ids=["by default", "every third"]
)
@pytest.mark.parametrize("script", ["train_without_tasks", "train_task_first"])
def test_killed_in_an_epoch_and_resumed_nothing_is_lost(
    script: str, own: tuple, passport: Path, tmp_path: Path
) -> None:
    output = tmp_path / "killed"
    with pytest.raises(RuntimeError, match="died"):
        run_ranks(1, train_until_killed, str(passport), script, str(output), own, group=False)
    assert last(output)["epoch"] == 0
    resumed = ("--model-ema", "--resume", str(output / "last.pth.tar"))
    run(passport, script, tmp_path / "resumed", *resumed, own=own)
    run(passport, script, tmp_path / "whole", "--model-ema", own=own)
    whole, resumed = last(tmp_path / "whole"), last(tmp_path / "resumed")
    for key in ("state_dict", "state_dict_ema", "optimizer", "task_state", "task_state_ema"):
        assert_same(whole.get(key), resumed.get(key), key)


def names() -> list[object]:
    return [
        timm.optim.create_optimizer_v2,
        timm.utils.update_summary,
        timm.task.ClassificationTask,
        timm.task.classification.ClassificationTask,
        timm.task.LogitDistillationTask,
        nn.CrossEntropyLoss.forward,
        timm.loss.SoftTargetCrossEntropy.forward,
        timm.loss.JsdCrossEntropy.__call__,
        list(sys.argv),
        list(sys.path),
    ]


def test_summary_claim_and_no_name_left_behind(
    passport: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, claim = names(), tmp_path / "owner.claim"
    output = tmp_path / "out"
    with caplog.at_level("INFO", logger="passportize.timm"):
        run(passport, GENERATIONS[2], output, own=("--claim", str(claim)))
    assert names() == before
    with (output / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    for column in ("signature", "sign_loss", "private_loss", "private_top1"):
        assert all(float(row[f"train_{column}"]) >= 0 for row in rows)
    assert "signature" in caplog.text and PASSPORT.commitment() in caplog.text
    best = output / "model_best.pth.tar"
    assert str(best) in caplog.text and pp.load_claim(claim).digest() in caplog.text
    plain = timm.create_model("test_resnet", num_classes=CLASSES, checkpoint_path=str(best))
    verdict = pp.verify(plain, PASSPORT, claim)
    assert verdict.accepted and verdict.same_weights
    assert (
        claim_checkpoint(best, PASSPORT, tmp_path / "again.claim", model=fresh()).digest()
        == pp.load_claim(claim).digest()
    )
    with pytest.raises(InvalidArgument, match="exists already"):
        run(passport, GENERATIONS[2], output, own=("--claim", str(claim)))
    with pytest.raises(WrongPassport):
        restore_checkpoint(output / "last.pth.tar", pp.Passport.generate("Else"), model=fresh())


@pytest.mark.parametrize(
    ("script", "own", "arguments"),
    [
        (0, ("--preset", "paper", "--set", "private_every=2"), ("--loss", "smooth")),
        (0, ("--where", "layer4*"), ("--loss", "jsd", "--lr", "0.01")),
        (1, ("--preset", "signature"), ("--loss", "bce", "--channels-last")),
        (2, (), ("--loss", "jsd", "--opt", "muon", "--lr", "0.01")),
        (2, (), ("--opt", "adamw", "--lr", "0.001", "--layer-decay", "0.7")),
        (2, (), ("--clip-mode", "agc", "--model", "test_vit", "--grad-checkpointing")),
        (0, (), ("--clip-mode", "agc", "--model", "test_efficientnet")),
    ],
)
def test_options_of_training(
    script: int, own: tuple, arguments: tuple, passport: Path, tmp_path: Path
) -> None:
    run(
        passport,
        GENERATIONS[script],
        tmp_path / "out",
        "--epochs",
        "1",
        "--steps",
        "2",
        *arguments,
        own=own,
    )
    content = last(tmp_path / "out")
    for name, value in content["state_dict"].items():
        assert torch.isfinite(value).all(), name
        assert not name.startswith("_orig_mod")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--torchscript",), "torchscript"),
        (("--split-bn", "--aug-splits", "3"), "split-bn"),
        (("--kd-model-name", "resnet18", "--kd-distill-type", "feature"), "feature"),
    ],
)
@pytest.mark.parametrize("in_file", [False, True])
def test_flags_that_cannot_work_are_refused_before_anything_starts(
    flags: tuple, message: str, in_file: bool, passport: Path, tmp_path: Path
) -> None:
    if in_file:
        lines = [f.removeprefix("--").replace("-", "_") for f in flags if f.startswith("--")]
        values = [f for f in flags if not f.startswith("--")] or ["true"]
        values += ["true"] * (len(lines) - len(values))
        text = "\n".join(f"{k}: {v}" for k, v in zip(lines, values, strict=True))
        (tmp_path / "args.yaml").write_text(text)
        flags = ("-c", str(tmp_path / "args.yaml"))
    with pytest.raises(InvalidArgument, match=message):
        run(passport, GENERATIONS[0], tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def script_of(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "train.py"
    path.write_text(text)
    return [str(path)]


MODEL = """
import timm, torch
from timm.optim import create_optimizer_v2
model = timm.create_model("test_resnet", num_classes=4)
"""


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("print(1)", TrainingError, "never called timm.optim.create_optimizer_v2"),
        ("import sys; sys.exit()", TrainingError, "never called timm.optim.create_optimizer_v2"),
        (MODEL + "create_optimizer_v2(model.parameters())", TrainingError, "never called timm"),
        (MODEL + "create_optimizer_v2(model)", TrainingError, "never called the model"),
        (
            MODEL
            + "create_optimizer_v2(model)\n"
            + "torch.nn.functional.cross_entropy(model.train()(torch.zeros(8, 3, 48, 48)), "
            + "torch.zeros(8).long())",
            BranchMisuse,
            "JointCriterion",
        ),
        (
            MODEL + "create_optimizer_v2(torch.jit.script(torch.nn.Linear(8, 8)))",
            TypeError,
            "TorchScript",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_run_that_protects_nothing_fails(
    text: str, error: type[Exception], message: str, passport: Path, tmp_path: Path
) -> None:
    before = names()
    with pytest.raises(error, match=message):
        launch(["--passport", str(passport), *script_of(tmp_path, text)])
    assert names() == before


def test_own_options(passport: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = script_of(tmp_path, "import sys; sys.exit(3 if sys.argv[1:] == ['--passport'] else 4)")
    with pytest.raises(SystemExit, match="3"):
        launch(["--passport", str(passport), *script, "--passport"])
    with pytest.raises(SystemExit, match="0"):
        launch(["--passport", str(passport), str(SCRIPTS / "train_with_task.py"), "--help"])
    with pytest.raises(InvalidArgument, match="NAME=VALUE"):
        launch(["--passport", str(passport), "--set", "margin", *script])
    with pytest.raises(InvalidArgument, match="unknown settings"):
        launch(["--passport", str(passport), "--set", "nothing=1", *script])
    with pytest.raises(InvalidArgument, match="no such training script"):
        launch(["--passport", str(passport), str(tmp_path / "none.py")])
    with pytest.raises(PassportFileError):
        launch(["--passport", str(tmp_path / "none"), *script])
    sealed = tmp_path / "sealed.passport"
    PASSPORT.save(sealed, "open sesame")
    monkeypatch.setenv(PASSPHRASE, "open sesame")
    text = f"import os, sys; sys.exit(5 if {PASSPHRASE!r} in os.environ else 6)"
    with pytest.raises(SystemExit, match="6"):
        launch(["--passport", str(sealed), *script_of(tmp_path, text)])


# --- tasks ----------------------------------------------------------------------------------------


class TwoHeads(nn.Module):
    """Returns two sets of logits, as models with a distillation token do in training."""

    pretrained_cfg = timm.create_model("test_resnet").pretrained_cfg
    num_classes = CLASSES
    in_chans = 3

    def __init__(self) -> None:
        super().__init__()
        self.trunk = timm.create_model("test_resnet", num_classes=8)
        self.distilled_training = True

    def set_distilled_training(self, enable: bool = True) -> None:
        self.distilled_training = enable

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.trunk(x)
        return logits[:, :4], logits[:, 4:]


@pytest.mark.parametrize("kind", ["logit", "token"])
def test_distillation_leaves_the_teacher_plain(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = fresh() if kind == "logit" else TwoHeads()
    teacher = fresh()
    session = Session(PASSPORT, pp.PassportConfig.keyed())
    with Patches() as patches:
        session.install(patches)
        task_class = getattr(timm.task, f"{kind.title()}DistillationTask")
        task = task_class(
            student_model=student,
            teacher_model=teacher,
            criterion=nn.CrossEntropyLoss(),
            task_loss_weight=0.5,
            verbose=False,
        )
        optimizer = timm.optim.create_optimizer_v2(task.get_trainable_module(), lr=0.01)
        task.train()
        x, y = torch.randn(8, 3, 48, 48), torch.arange(8) % CLASSES
        result = task(x, y)
        result["loss"].backward()
        optimizer.step()
    assert not any(isinstance(module, pp.PassportLayer) for module in teacher.modules())
    assert result["output"].shape == (8, CLASSES)
    assert all(p.grad is not None for p in student.parameters())
    parts = session.meter.read()
    distilled = result["kd_loss" if kind == "logit" else "distill_loss"].item()
    expected = 0.5 * parts["public_loss"] + 0.5 * distilled
    # Half by private_weight, and half of that for a quarter of the samples.
    expected += 0.25 * parts["private_loss"] + parts["sign_loss"]
    assert result["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert set(task.get_checkpoint_state()["state_dict"]) == set(
        pp.host_state_dict(student.state_dict())
    )


def test_a_task_for_loops_of_ones_own() -> None:
    torch.manual_seed(0)
    model = prepare(fresh(), PASSPORT, config=pp.PassportConfig.paper())
    task = PassportTask(model, nn.CrossEntropyLoss(), verbose=False)
    task.setup_ema(decay=0.5)
    task.train()
    x, y = torch.randn(8, 3, 48, 48), torch.arange(8) % CLASSES
    task(x, y)["loss"].backward()
    task.update_ema()
    state = {**task.get_checkpoint_state(), **task.get_checkpoint_state(ema=True)}
    fresh().load_state_dict(state["state_dict"])
    fresh().load_state_dict(state["state_dict_ema"])
    other = PassportTask(
        prepare(fresh(), PASSPORT, config=pp.PassportConfig.paper()), verbose=False
    )
    other.load_checkpoint_state(state["state_dict"], state["task_state"])
    assert_same(dict(other.trainable_module.state_dict()), dict(model.state_dict()))
    with pytest.raises(CheckpointError, match="--initial-checkpoint"):
        other.load_checkpoint_state(state["state_dict"])
    stranger = PassportTask(prepare(fresh(), pp.Passport.generate("Else")), verbose=False)
    with pytest.raises(WrongPassport, match="another passport"):
        stranger.load_checkpoint_state(state["state_dict"], state["task_state"])
    with pytest.raises(CheckpointError, match="the model is plain"):
        PassportTask(fresh(), verbose=False).load_checkpoint_state(
            state["state_dict"], state["task_state"]
        )


def test_prepare_refuses_what_cannot_work() -> None:
    from timm.layers import convert_splitbn_model
    from timm.task.distillation import FeatureDistillationTrainableModule

    with pytest.raises(pp.PassportizeError, match="SplitBatchNorm2d"):
        prepare(convert_splitbn_model(fresh(), 2), PASSPORT)
    with pytest.raises(InvalidArgument, match="feature distillation"):
        prepare(FeatureDistillationTrainableModule(fresh()), PASSPORT)
    model = prepare(fresh(), PASSPORT)
    assert passport_layers(model)
    with pytest.raises(AlreadyPassportized):
        prepare(model, PASSPORT)


def test_the_signature_is_there_before_the_first_step(
    passport: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    assert pp.signature_accuracy(prepare(fresh(), PASSPORT)) == 1.0
    assert pp.signature_accuracy(prepare(fresh(), PASSPORT, embed=False)) < 0.7
    with caplog.at_level("INFO", logger="passportize.timm"):
        run(passport, GENERATIONS[2], tmp_path / "with")
        assert "Passport: 1040 of 1040 bits" in caplog.text
        caplog.clear()
        run(passport, GENERATIONS[2], tmp_path / "without", own=("--no-embed",))
        assert "1040 of 1040" not in caplog.text
