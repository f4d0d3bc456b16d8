"""PassportTrainer: transformers' own loop around models that compute their loss themselves."""

from __future__ import annotations

import copy
import gc
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import passportize as pp
from passportize.errors import (
    CheckpointError,
    ClaimFileError,
    InvalidArgument,
    WrongPassport,
)
from passportize.integrations.protection import Protection
from passportize.layers.missing_bits import MissingBitsWarning
from passportize.release.notice import Notice
from tests.support import ROOT
from tests.support.small_protected import images

hf = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from passportize.integrations.transformers import (  # noqa: E402
    BRANCH_FILE,
    PassportTrainer,
    PassportTrainerMixin,
)

SECRET = bytes(range(32))
PASSPORT = pp.Passport.generate("Acme", date="2026-01-31", secret=SECRET)
pytestmark = pytest.mark.filterwarnings("ignore:::(torch|transformers|accelerate)")


@pytest.fixture(autouse=True, scope="module")
def few_to_collect() -> Iterator[None]:
    """Trainers collect garbage again and again, among all that was ever imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    level = logging.getLogger("transformers").level
    logging.getLogger("transformers").setLevel(logging.ERROR)
    yield
    logging.getLogger("transformers").setLevel(level)


class Digits(torch.utils.data.Dataset):
    """Samples as the collator of the Trainer takes them."""

    def __init__(self, split: str, rows: int) -> None:
        self.images, self.labels = (tensor[:rows] for tensor in images(split))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.images[index], "labels": int(self.labels[index])}


def vit(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    config = hf.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=8,
        patch_size=2,
        num_channels=1,
        num_labels=10,
        hidden_dropout_prob=0.0,
        **settings,
    )
    return hf.ViTForImageClassification(config)


def arguments(folder: Path, **settings: Any) -> Any:
    values = {
        "output_dir": str(folder),
        "num_train_epochs": 2,
        "per_device_train_batch_size": 24,
        "learning_rate": 2e-3,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "epoch",
        "dataloader_pin_memory": False,
        "seed": 3,
        **settings,
    }
    return hf.TrainingArguments(**values)


def trainer(
    folder: Path,
    model: nn.Module | None = None,
    passport: pp.Passport = PASSPORT,
    kind: Any = PassportTrainer,
    notice: Notice | None = None,
    protection: dict[str, Any] | None = None,
    rows: int = 96,
    others: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    others = others or {}
    made = kind(
        model=vit() if model is None and "model_init" not in others else model,
        args=arguments(folder, **settings),
        train_dataset=Digits("train", rows),
        eval_dataset=Digits("test", 100),
        protection=Protection(passport, **(protection or {"claim": folder.parent / "claim"})),
        notice=notice,
        **others,
    )
    made.remove_callback(hf.PrinterCallback)
    return made


def is_plain(model: nn.Module) -> bool:
    return not any(
        isinstance(each, pp.PassportLayer) or each._forward_hooks or each._forward_pre_hooks
        for each in model.modules()
    )


class Watcher(hf.TrainerCallback):
    """What both branches compute when the training ends."""

    def on_train_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        model = copy.deepcopy(model).eval()
        with torch.no_grad():
            self.public = model(images("test")[0]).logits
            with pp.branch(model, "private"):
                self.private = model(images("test")[0]).logits


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bf16": True, "gradient_accumulation_steps": 2},
        {"activation_checkpointing": True, "per_device_train_batch_size": 37},
        {"label_smoothing_factor": 0.1, "per_device_train_batch_size": 1, "max_steps": 6},
    ],
    ids=["plain", "bf16-accumulation", "checkpointing-odd", "smoothing-single"],
)
def test_from_plain_model_to_verdict(tmp_path: Path, settings: dict[str, Any]) -> None:
    model, watcher = vit(), Watcher()
    names, kinds = list(model.state_dict()), [type(each) for each in model.modules()]
    run = trainer(tmp_path / "run", model, **settings)
    run.add_callback(watcher)
    run.train()
    assert run.model is model and is_plain(model) and list(model.state_dict()) == names
    assert [type(each) for each in model.modules()] == kinds
    logged = [entry for entry in run.state.log_history if "passport_signature" in entry]
    assert logged and {
        "passport_sign_loss",
        "passport_public_loss",
        "passport_private_loss",
    } <= set(logged[-1])
    assert logged[-1]["passport_signature"] == 100
    with torch.no_grad():
        assert torch.equal(model.eval()(images("test")[0]).logits, watcher.public)
    assert not torch.equal(watcher.private, watcher.public)

    run.save_model(tmp_path / "released")
    assert not list((tmp_path / "released").glob(f"*{BRANCH_FILE}*"))
    released = hf.ViTForImageClassification.from_pretrained(tmp_path / "released")
    claim = pp.load_claim(tmp_path / "claim")
    verdict = pp.verify(released, PASSPORT, claim)
    assert verdict.accepted and verdict.same_weights and verdict.matched == verdict.total == 128


def test_the_claim_is_on_the_best_checkpoint_where_that_is_loaded(tmp_path: Path) -> None:
    """The first epoch is the best one here, for ``paper`` with what its branch had learnt then."""

    class FirstIsBest(PassportTrainer):
        def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
            metrics = super().evaluate(*args, **kwargs)
            metrics["eval_loss"] = float(self.state.epoch)
            return metrics

    run = trainer(
        tmp_path / "run",
        kind=FirstIsBest,
        protection={"claim": tmp_path / "claim", "config": pp.PassportConfig.paper()},
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    run.train()
    best = Path(run.state.best_model_checkpoint)
    assert best.name == "checkpoint-4"
    suspect = hf.ViTForImageClassification.from_pretrained(best)
    assert pp.verify(suspect, PASSPORT, run.claim).same_weights
    from safetensors.torch import load_file

    kept = load_file(best / BRANCH_FILE)
    claimed = [value for name, value in sorted(run.claim.tensors.items())]
    learnt = [value for name, value in kept.items() if "bottleneck" in name]
    assert claimed and all(any(torch.equal(a, b) for b in learnt) for a in claimed)


@pytest.mark.parametrize("preset", ["keyed", "paper"])
def test_resumed_is_uninterrupted(tmp_path: Path, preset: str) -> None:
    """Weights and private branch, from inside an epoch, with a shuffled order of samples."""
    config = getattr(pp.PassportConfig, preset)(sign_every=4)
    settings = {"save_strategy": "steps", "save_steps": 3}
    protection = {"claim": tmp_path / "claim", "config": config, "overwrite": True}
    whole = trainer(tmp_path / "whole", protection=protection, **settings)
    whole.train()
    part = trainer(tmp_path / "part", protection=protection, **settings)
    part.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    own = dict(whole.model.state_dict())
    for name, value in part.model.state_dict().items():
        assert torch.equal(own[name], value), name
    from safetensors.torch import load_file

    kept = [load_file(tmp_path / run / "checkpoint-6" / BRANCH_FILE) for run in ("whole", "part")]
    assert kept[0].keys() == kept[1].keys() and kept[0]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])
    assert int(next(kept[0][name] for name in kept[0] if "counter" in name)) == 6


def test_what_is_resumed_has_to_fit(tmp_path: Path) -> None:
    marked = trainer(
        tmp_path / "run",
        num_train_epochs=1,
        save_strategy="epoch",
        protection={"where": "*0.layernorm*"},
    )
    with pytest.warns(UserWarning, match="was not saved"):
        marked.train()
    folder = tmp_path / "run" / "checkpoint-4"
    for passport, error in (
        (pp.Passport.generate("Other"), WrongPassport),
        (PASSPORT, CheckpointError),
    ):
        run = trainer(tmp_path / "run", passport=passport)
        with pytest.raises(error, match="the checkpoint to resume"):
            run.train(resume_from_checkpoint=str(folder))
        assert is_plain(run.model)
    (folder / BRANCH_FILE).unlink()
    config = pp.PassportConfig.keyed(sign_every=2)
    run = trainer(tmp_path / "run", protection={"config": config})
    with pytest.raises(CheckpointError, match="made without passports"):
        run.train(resume_from_checkpoint=str(folder))


def test_a_checkpoint_holds_no_secret_and_plain_weights(tmp_path: Path) -> None:
    run = trainer(tmp_path / "run", num_train_epochs=1, save_strategy="epoch")
    run.train()
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert any(file.name == BRANCH_FILE for file in files)
    for file in [*files, tmp_path / "claim"]:
        content = file.read_bytes()
        for secret in (SECRET, PASSPORT.reading_key):
            assert secret not in content and secret.hex().encode() not in content
    # Loaded as any other: no key is missing, none is left over.
    _, info = hf.ViTForImageClassification.from_pretrained(
        tmp_path / "run" / "checkpoint-4", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert SECRET.hex() not in repr(run._protection) + str(vars(run))


def test_the_public_branch_is_evaluated_and_predicted(tmp_path: Path) -> None:
    class Compares(hf.TrainerCallback):
        found: ClassVar[list[float]] = []

        def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any):
            if is_plain(model):
                return
            plain = copy.deepcopy(model)
            for each in plain.modules():
                if isinstance(each, pp.PassportLayer):
                    each.passport.switch.saved = True
            plain = pp.unpassportize(plain).eval()
            x, y = (tensor[:100] for tensor in images("test"))
            with torch.no_grad():
                self.found.append(float(plain(x, labels=y).loss))

    run = trainer(tmp_path / "run", eval_strategy="epoch", per_device_eval_batch_size=100)
    run.add_callback(Compares())
    run.train()
    told = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
    assert told == pytest.approx(Compares.found, rel=1e-6) and len(told) == 2
    again = run.predict(Digits("test", 100))
    with torch.no_grad():
        logits = run.model.eval()(images("test")[0][:100]).logits
    torch.testing.assert_close(torch.as_tensor(again.predictions), logits)
    assert run.evaluate()["eval_loss"] == pytest.approx(told[-1], rel=1e-5)


def test_accumulated_parts_of_a_batch_count_as_the_whole(tmp_path: Path) -> None:
    """One step over 48 samples or over four times 12, the sign loss counted once."""
    weights = []
    for size, parts in ((48, 1), (12, 4)):
        run = trainer(
            tmp_path / str(size) / "run",
            protection={
                "claim": tmp_path / f"{size}.claim",
                "config": pp.PassportConfig.signature(sign_every=1),
                "embed": False,
            },
            per_device_train_batch_size=size,
            gradient_accumulation_steps=parts,
            max_steps=1,
            optim="sgd",
            learning_rate=1.0,
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
            save_strategy="no",
        )
        run.train()
        weights.append(torch.cat([item.detach().flatten() for item in run.model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-5)


def test_a_model_that_normalises_its_loss_over_the_accumulation(tmp_path: Path) -> None:
    """Such a loss is not divided by the Trainer, so its private part has to be."""

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Flatten(), nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 10)
            )

        def forward(self, pixel_values: Any, labels: Any = None, **kwargs: Any) -> dict[str, Any]:
            logits = self.net(pixel_values)
            if labels is None:
                return {"logits": logits}
            count = kwargs.get("num_items_in_batch")
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
            return {"loss": loss / (len(labels) if count is None else count), "logits": logits}

    weights, config = [], pp.PassportConfig.keyed(sign_every=1, private_fraction=1.0)
    for size, parts in ((48, 1), (12, 4)):
        torch.manual_seed(0)
        run = trainer(
            tmp_path / str(size) / "run",
            Wrapped(),
            protection={"claim": tmp_path / f"{size}.claim", "config": config},
            per_device_train_batch_size=size,
            gradient_accumulation_steps=parts,
            max_steps=1,
            optim="sgd",
            learning_rate=0.5,
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
            save_strategy="no",
        )
        assert run.model_accepts_loss_kwargs
        run.train()
        weights.append(torch.cat([item.detach().flatten() for item in run.model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-5)


def test_an_exception_leaves_the_plain_model(tmp_path: Path) -> None:
    class Breaks(hf.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 4:
                raise KeyboardInterrupt

    settings = {"save_strategy": "steps", "save_steps": 3}
    run = trainer(tmp_path / "run", **settings)
    breaks = Breaks()
    run.add_callback(breaks)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert is_plain(run.model) and not (tmp_path / "claim").exists() and run.claim is None
    run.remove_callback(breaks)
    run.train(resume_from_checkpoint=True)
    assert is_plain(run.model) and pp.verify(run.model, PASSPORT, run.claim).same_weights


def test_the_card_that_is_pushed_says_what_the_owner_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed = {}

    class Hub:
        def upload_folder(self, folder_path: str, **_: Any) -> str:
            for file in Path(folder_path).iterdir():
                if file.is_file():
                    pushed[file.name] = file.read_bytes()
            return "pushed"

    monkeypatch.setattr("transformers.trainer.hf_api", Hub)
    monkeypatch.setattr(hf.Trainer, "init_hf_repo", lambda self, **_: None)
    notice = Notice(contact="models@acme.example", digest="0f" * 32)
    run = trainer(tmp_path / "run", notice=notice, num_train_epochs=1)
    run.train()
    run.hub_model_id = "acme/digits"
    run.push_to_hub()
    card = pushed["README.md"].decode()
    assert notice.to_markdown() in card
    assert "model.safetensors" in pushed and BRANCH_FILE not in pushed
    text = card.lower()
    assert not any(word in text for word in ("passport", "layernorm", "bits", "keyed", "private"))
    assert b"passport" not in pushed["model.safetensors"] + pushed["config.json"]


@pytest.mark.parametrize(
    ("settings", "others", "match"),
    [
        ({}, {"model_init": lambda: vit()}, "model_init"),
        ({"torch_compile": True}, {}, "torch_compile"),
        ({"push_to_hub": True, "hub_strategy": "checkpoint"}, {}, "hub_strategy='checkpoint'"),
        ({"push_to_hub": True, "hub_strategy": "all_checkpoints"}, {}, "all_checkpoints"),
    ],
)
def test_refused_by_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    others: dict[str, Any],
    match: str,
) -> None:
    monkeypatch.setattr(hf.Trainer, "init_hf_repo", lambda self, **_: None)
    run = trainer(tmp_path / "run", others=others, **settings)
    if "model_init" not in others:
        before = copy.deepcopy(run.model.state_dict())
    with pytest.raises(InvalidArgument, match=match):
        run.train()
    if "model_init" not in others:
        assert all(torch.equal(run.model.state_dict()[name], before[name]) for name in before)


def test_an_optimizer_from_outside_has_to_know_the_bottleneck(tmp_path: Path) -> None:
    model = vit()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    for preset in ("keyed", "paper"):
        run = trainer(
            tmp_path / preset / "run",
            model,
            others={"optimizers": (optimizer, schedule)},
            protection={
                "claim": tmp_path / f"{preset}.claim",
                "config": pp.PassportConfig.preset(preset),
                "embed": preset == "keyed",
            },
            max_steps=2,
        )
        if preset == "keyed":
            run.train()
            continue
        with pytest.raises(InvalidArgument, match="let the Trainer make the optimizer"):
            run.train()
        assert is_plain(model)


def test_arguments_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="give Protection"):
        PassportTrainer(model=vit(), args=arguments(tmp_path), protection=PASSPORT)
    with pytest.raises(ClaimFileError):
        trainer(tmp_path / "run", protection={"claim": tmp_path / "no" / "claim"}).train()
    for wrong in ({"digest": "0f"}, {"contact": "a\nb"}):
        with pytest.raises(InvalidArgument, match="notice"):
            Notice(**wrong)


def test_a_trainer_of_ones_own(tmp_path: Path) -> None:
    """With a loss of its own, which the private branch gets, too."""
    rows: list[int] = []

    class Own(hf.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            output = model(**inputs)
            rows.append(len(labels))
            loss = nn.functional.multi_margin_loss(output.logits, labels)
            return (loss, output) if return_outputs else loss

    class Both(PassportTrainerMixin, Own):
        pass

    run = trainer(tmp_path / "run", kind=Both, max_steps=2)
    run.train()
    assert rows == [24, 6, 24, 6]
    assert pp.verify(run.model, PASSPORT, run.claim).same_weights


def test_a_trainer_left_as_it_is_is_noticed(tmp_path: Path) -> None:
    """It trains no bit, and save_claim says so."""
    model = vit()
    x = {"pixel_values": images("test")[0][:4]}
    pp.passportize(model, PASSPORT, example_inputs=x)
    hf.Trainer(
        model=model,
        args=arguments(tmp_path, save_strategy="no", num_train_epochs=1),
        train_dataset=Digits("train", 240),
    ).train()
    with pytest.warns(MissingBitsWarning, match="joint_loss"):
        pp.save_claim(model, tmp_path / "claim")


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """DDP: equal parameters on both, the claim of rank 0 on what it saved."""
    script = tmp_path / "train.py"
    script.write_text(
        f"""
import warnings
warnings.simplefilter("ignore")
from tests.integrations.test_transformers_trainer import *
folder = Path({str(tmp_path)!r})
torch.set_num_threads(1)
run = trainer(folder / "run", ddp_backend="gloo", logging_strategy="no")
run.train()
own = torch.cat([item.detach().flatten() for item in run.model.parameters()])
first = own.clone()
torch.distributed.broadcast(first, 0)
rank = torch.distributed.get_rank()
assert is_plain(run.model) and torch.equal(first, own) and (run.claim is not None) is (rank == 0)
run.save_model(folder / "released")
(folder / f"fine{{rank}}").touch()
torch.distributed.destroy_process_group()
"""
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", "29517", str(script)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (tmp_path / "fine0").exists() and (tmp_path / "fine1").exists(), done.stderr[-3000:]
    suspect = hf.ViTForImageClassification.from_pretrained(tmp_path / "released")
    verdict = pp.verify(suspect, PASSPORT, pp.load_claim(tmp_path / "claim"))
    assert verdict.accepted and verdict.same_weights
