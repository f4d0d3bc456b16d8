"""PassportCallback: LightningModules whose training_step knows nothing of passports."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import passportize as pp
from passportize.errors import (
    BranchMisuse,
    CheckpointError,
    ClaimFileError,
    InvalidArgument,
    MissingExtra,
    WrongPassport,
)
from passportize.layers.missing_bits import MissingBitsWarning
from tests.support.small_protected import images

L = pytest.importorskip("lightning.pytorch")

from passportize.integrations.lightning import PassportCallback  # noqa: E402

SECRET = bytes(range(32))
PASSPORT = pp.Passport.generate("Acme", date="2026-01-31", secret=SECRET)
pytestmark = [
    pytest.mark.filterwarnings("ignore:::lightning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    names = ("lightning.pytorch", "pytorch_lightning", "lightning.fabric")
    levels = [logging.getLogger(name).level for name in names]
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.manual_seed(0)
    yield
    for name, level in zip(names, levels, strict=True):
        logging.getLogger(name).setLevel(level)


def small(norm=nn.BatchNorm2d) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        norm(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False),
        norm(64),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


class Classifier(L.LightningModule):
    """As a tutorial has it."""

    def __init__(self, rate: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = small()
        self.rate = rate

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self.network(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        scores = self.network(x)
        self.log("accuracy", (scores.argmax(1) == y).float().mean())
        self.log("epoch_then", float(self.current_epoch))

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.network(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.rate, momentum=0.9)


def data(split: str = "train", rows: int = 256, batch: int = 64, **settings: Any) -> DataLoader:
    x, y = images(split)
    return DataLoader(TensorDataset(x[:rows], y[:rows]), batch_size=batch, **settings)


def trainer(folder: Path, *callbacks: Any, package: Any = L, best: str = "min", **settings: Any):
    checkpoint = package.callbacks.ModelCheckpoint(
        dirpath=folder, monitor="epoch_then", mode=best, save_top_k=-1, save_last=True
    )
    values = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
        "callbacks": [*callbacks, checkpoint],
        **settings,
    }
    return package.Trainer(**values)


def is_plain(module: nn.Module) -> bool:
    return (
        not any(isinstance(each, pp.PassportLayer) for each in module.modules())
        and not any(each._forward_hooks or each._forward_pre_hooks for each in module.modules())
        and not {"training_step", "log", "log_dict"} & set(vars(module))
        and not module._state_dict_hooks
        and not module._load_state_dict_pre_hooks
    )


class Watcher(L.Callback):
    """What both branches compute when the training ends, before the callback ends."""

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        network = copy.deepcopy(pl_module.network).eval()
        with torch.no_grad():
            self.public = network(images("test")[0])
            with pp.branch(network, "private"):
                self.private = network(images("test")[0])
        self.bits = pp.signature_accuracy(network)


def test_from_plain_module_to_verdict(tmp_path: Path) -> None:
    """The claim is on the best checkpoint, which is the first one here, and not on the last."""
    module, watcher = Classifier(), Watcher()
    network, norms = module.network, [module.network[1], module.network[4]]
    callback = PassportCallback(PASSPORT, claim=tmp_path / "acme.claim.safetensors")
    run = trainer(tmp_path, callback, watcher)
    run.fit(module, data(shuffle=True), data("test"))

    assert watcher.bits == 1.0 and run.callback_metrics["passport_signature"] == 100
    assert {f"passport_{name}_loss" for name in ("sign", "public", "private")} <= set(
        run.callback_metrics
    )
    assert is_plain(module) and module.network is network
    assert norms == [network[1], network[4]] and type(norms[0]) is nn.BatchNorm2d
    network.eval()
    assert torch.equal(network(images("test")[0]), watcher.public)
    assert not torch.equal(watcher.private, watcher.public)

    best, last = run.checkpoint_callback.best_model_path, run.checkpoint_callback.last_model_path
    assert "epoch=0" in best and "epoch" not in Path(last).name
    claim = pp.load_claim(tmp_path / "acme.claim.safetensors")
    assert callback.claim is not None and claim.digest() == callback.claim.digest()
    for path, same in ((best, True), (last, False)):
        # A plain module loads the checkpoint strictly.
        suspect = Classifier.load_from_checkpoint(path).network
        verdict = pp.verify(suspect, PASSPORT, claim, [(*images("test"),)])
        assert verdict.accepted and verdict.same_weights is same
        assert verdict.matched == verdict.total == 96


def test_no_secret_is_in_a_checkpoint_and_its_weights_are_plain(tmp_path: Path) -> None:
    module = Classifier()
    callback = PassportCallback(PASSPORT, claim=tmp_path / "claim.safetensors")
    run = trainer(tmp_path, callback, max_epochs=1)
    run.fit(module, data(rows=128), data("test"))
    path = run.checkpoint_callback.best_model_path
    content = torch.load(path, weights_only=True)
    assert list(content["state_dict"]) == list(Classifier().state_dict())
    assert "passport" not in str(content["state_dict"]._metadata)
    state = content["callbacks"]["PassportCallback"]
    assert set(state) == {"tensors", "record"}
    assert all(".passport." in name for name in state["tensors"])
    secrets = [SECRET, PASSPORT.reading_key]
    # The archive's members are not compressed.
    for text in (Path(path).read_bytes(), (tmp_path / "claim.safetensors").read_bytes()):
        for secret in secrets:
            assert secret not in text and secret.hex().encode() not in text
    for shown in (repr(callback), repr(callback._protection), str(vars(callback))):
        assert SECRET.hex() not in shown and repr(SECRET) not in shown


@pytest.mark.parametrize("preset", ["keyed", "paper"])
def test_resumed_is_uninterrupted(tmp_path: Path, preset: str) -> None:
    """Weights, private branch and turns of the sign loss; 3 steps an epoch, the sign loss in 4."""
    config = getattr(pp.PassportConfig, preset)(sign_every=4)
    states = []
    for folder, parts in (("whole", [2]), ("parts", [1, 2])):
        for epochs in parts:
            torch.manual_seed(0)
            module = Classifier()
            callback = PassportCallback(
                PASSPORT, config=config, claim=tmp_path / f"{folder}{epochs}"
            )
            run = trainer(tmp_path / folder, callback, max_epochs=epochs)
            last = tmp_path / folder / "last.ckpt" if epochs > parts[0] else None
            run.fit(module, data(rows=192), data("test"), ckpt_path=last)
        states.append(torch.load(tmp_path / folder / "last.ckpt", weights_only=True))
    whole, parts = states
    for kept in (
        lambda s: s["state_dict"],
        lambda s: s["callbacks"]["PassportCallback"]["tensors"],
    ):
        assert list(kept(whole)) == list(kept(parts))
        for name, value in kept(whole).items():
            assert torch.equal(kept(parts)[name], value), name
    name = "1.passport.counter._extra_state"
    assert int(parts["callbacks"]["PassportCallback"]["tensors"][name]) == 6


def test_what_is_resumed_has_to_fit(tmp_path: Path) -> None:
    plain = trainer(tmp_path / "plain", max_epochs=1)
    plain.fit(Classifier(), data(rows=64), data("test"))
    other = PassportCallback(PASSPORT, where="1", claim=tmp_path / "1")
    marked = trainer(tmp_path / "marked", other, max_epochs=1)
    marked.fit(Classifier(), data(rows=64), data("test"))
    for folder, passport, error in (
        ("plain", PASSPORT, CheckpointError),
        ("marked", pp.Passport.generate("Other"), WrongPassport),
        ("marked", PASSPORT, CheckpointError),
    ):
        module = Classifier()
        run = trainer(tmp_path, PassportCallback(passport))
        with pytest.raises(error, match="the checkpoint to resume"):
            run.fit(module, data(rows=64), ckpt_path=tmp_path / folder / "last.ckpt")
        assert is_plain(module)


def test_the_public_branch_is_validated_tested_and_predicted(tmp_path: Path) -> None:
    """Between steps, too; with batches of odd size, the last one of a single sample."""

    class Modes(L.Callback):
        calls = 0

        def on_validation_batch_start(self, trainer, pl_module, batch, *args: Any) -> None:
            network = pl_module.network
            if trainer.state.fn != "fit":
                return
            assert any(isinstance(each, pp.PassportLayer) for each in network.modules())
            plain = copy.deepcopy(network)
            for each in plain.modules():
                if isinstance(each, pp.PassportLayer):
                    each.passport.switch.saved = True
            pp.unpassportize(plain)
            self.calls += 1
            assert torch.equal(network(batch[0]), plain(batch[0]))

    module = Classifier()
    callback = PassportCallback(PASSPORT, claim=tmp_path / "claim")
    run = trainer(tmp_path, callback, Modes(), max_epochs=1, val_check_interval=2)
    run.fit(module, data(rows=113, batch=16, shuffle=True), data("test", rows=33, batch=16))
    assert Modes.calls == 0 and run.callbacks[1].calls == 3 * 4
    for path in ("best", None):
        run.test(module, data("test"), ckpt_path=path, verbose=False)
        run.validate(module, data("test"), ckpt_path=path, verbose=False)
        found = run.predict(module, data("test"), ckpt_path=path)
        assert is_plain(module)
        assert torch.equal(torch.cat(found), module.eval().network(images("test")[0][:256]))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_precision_and_accumulation(tmp_path: Path, precision: str) -> None:
    module = Classifier()
    callback = PassportCallback(PASSPORT, claim=tmp_path / "claim")
    run = trainer(tmp_path, callback, precision=precision, accumulate_grad_batches=2)
    run.fit(module, data(batch=32), data("test"))
    assert callback.claim is not None and run.callback_metrics["passport_signature"] == 100
    best = Classifier.load_from_checkpoint(run.checkpoint_callback.best_model_path).network
    assert pp.verify(best, PASSPORT, callback.claim).accepted


def test_an_exception_leaves_the_plain_module_and_a_checkpoint_to_resume(tmp_path: Path) -> None:
    class Breaks(Classifier):
        broken = True

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            if self.broken and self.global_step == 3:
                raise RuntimeError("in training_step")
            return loss

    module = Breaks()
    network = module.network
    saver = L.callbacks.OnExceptionCheckpoint(tmp_path)
    run = trainer(tmp_path, PassportCallback(PASSPORT, claim=tmp_path / "claim"), saver)
    with pytest.raises(RuntimeError, match="in training_step"):
        run.fit(module, data())
    assert is_plain(module) and module.network is network and not (tmp_path / "claim").exists()
    assert list(module.state_dict()) == list(Classifier().state_dict())

    Breaks.broken = False
    resumed = PassportCallback(PASSPORT, claim=tmp_path / "claim")
    run = trainer(tmp_path / "again", resumed)
    run.fit(module, data(), data("test"), ckpt_path=tmp_path / "on_exception.ckpt")
    assert resumed.claim is not None and run.global_step == 8


def test_a_callback_may_be_used_again(tmp_path: Path) -> None:
    callback = PassportCallback(PASSPORT, claim=tmp_path / "claim", overwrite=True)
    digests = set()
    module = Classifier()
    for number in range(2):
        trainer(tmp_path / str(number), callback, max_epochs=1).fit(module, data(), data("test"))
        assert is_plain(module) and callback.claim is not None
        digests.add(callback.claim.digest())
    assert len(digests) == 2


def test_without_checkpoints_the_claim_is_on_the_last_weights(tmp_path: Path) -> None:
    module = Classifier()
    callback = PassportCallback(PASSPORT, claim=tmp_path / "claim")
    run = trainer(tmp_path, callback, callbacks=[callback], enable_checkpointing=False)
    run.fit(module, data())
    assert callback.claim is not None
    assert pp.verify(module.network, PASSPORT, callback.claim).same_weights


def test_a_step_sees_one_pass(tmp_path: Path) -> None:
    """Metrics, lists, counters, logs and statistics of other modules are those of a plain run."""
    from torchmetrics import Accuracy

    class Counting(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.before = nn.BatchNorm2d(1, affine=False)
            self.hits = Accuracy(task="multiclass", num_classes=10)
            self.seen: list[int] = []
            self.steps = 0

        def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
            x, y = batch
            scores = self.network(self.before(x))
            self.hits(scores, y)
            self.seen.append(len(x))
            self.steps += 1
            self.log_dict({"rows": float(len(x))}, reduce_fx="sum", on_step=False, on_epoch=True)
            return {"loss": nn.functional.cross_entropy(scores, y), "rows": len(x)}

    found = []
    for callbacks in ([], [PassportCallback(PASSPORT, claim=tmp_path / "claim")]):
        torch.manual_seed(0)
        module = Counting()
        run = trainer(tmp_path / str(len(callbacks)), *callbacks, max_epochs=1)
        run.fit(module, data(), data("test"))
        mean = module.before.running_mean.clone()
        count = int(module.hits.tp.sum() + module.hits.fn.sum())
        found.append((module.seen, module.steps, float(run.callback_metrics["rows"]), count, mean))
    plain, joint = found
    assert joint[:4] == plain[:4] == ([64] * 4, 4, 256.0, 256)
    assert torch.equal(joint[4], plain[4])


class Two(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.other = small()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.network(x) + self.other(x), y)


def test_one_network_of_two(tmp_path: Path) -> None:
    module = Two()
    with pytest.raises(InvalidArgument, match="several modules with parameters"):
        trainer(tmp_path, PassportCallback(PASSPORT)).fit(module, data())
    assert is_plain(module)
    callback = PassportCallback(PASSPORT, network="other", claim=tmp_path / "claim")
    run = trainer(tmp_path, callback)
    run.fit(module, data(), data("test"))
    best = Two.load_from_checkpoint(run.checkpoint_callback.best_model_path)
    assert pp.verify(best.other, PASSPORT, callback.claim).same_weights
    assert not pp.verify(best.network, PASSPORT, callback.claim).accepted


class Manual(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Late(Classifier):
    def __init__(self) -> None:
        super().__init__()
        del self.network

    def setup(self, stage: str) -> None:
        self.network = small()


class Compiled(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.network.compile(backend="eager")


class Iterating(Classifier):
    def training_step(self, dataloader_iter: Any) -> Tensor:
        raise NotImplementedError


class Parts(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.network[:3](batch[0]).mean()


@pytest.mark.parametrize(
    ("kind", "settings", "flags", "error", "match"),
    [
        (Manual, {}, {}, InvalidArgument, "optimises manually"),
        (Late, {}, {}, InvalidArgument, "make it in __init__"),
        (Compiled, {}, {}, InvalidArgument, "is compiled"),
        (Iterating, {}, {}, InvalidArgument, "dataloader_iter"),
        (Parts, {}, {}, BranchMisuse, "never called Sequential"),
        (Classifier, {"network": "model"}, {}, InvalidArgument, "'model'.* it has network"),
        (Classifier, {"network": ""}, {}, InvalidArgument, "no such module"),
        (Classifier, {"claim": "missing/claim"}, {}, ClaimFileError, "missing"),
        (Classifier, {}, {"strategy": "fsdp"}, InvalidArgument, "FSDPStrategy"),
        (
            Classifier,
            {},
            {"strategy": "ddp", "sync_batchnorm": True},
            InvalidArgument,
            "sync_batchnorm",
        ),
    ],
)
def test_refused_by_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Any],
    settings: dict[str, Any],
    flags: dict[str, Any],
    error: type[Exception],
    match: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    module = kind()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    callback = PassportCallback(PASSPORT, **settings)
    with pytest.raises(error, match=match):
        if flags:
            # These need devices or processes before fit gets as far.
            from passportize.integrations.lightning.refusals import refuse_run

            if flags["strategy"] == "fsdp":
                strategy = L.strategies.FSDPStrategy()
                run = trainer(tmp_path, callback)
                run._accelerator_connector.strategy = strategy
            else:
                run = trainer(tmp_path, callback, **flags)
            refuse_run(run, module)
        trainer(tmp_path, callback).fit(module, data())
    assert is_plain(module)
    if kind is not Late:
        after = module.state_dict()
        bits_are_in = error is BranchMisuse  # found in the first step
        assert bits_are_in or all(torch.equal(after[name], value) for name, value in before.items())


def test_arguments_are_checked_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="expected a Passport, got str"):
        PassportCallback("acme.passport")
    with pytest.raises(TypeError, match="nonsense"):
        PassportCallback(PASSPORT, nonsense=1)
    two = trainer(tmp_path, PassportCallback(PASSPORT), max_epochs=1)
    two.callbacks.insert(0, PassportCallback(PASSPORT))
    with pytest.raises(InvalidArgument, match="one PassportCallback"):
        two.fit(Classifier(), data())
    taken = tmp_path / "taken"
    taken.write_bytes(b"")
    with pytest.raises(ClaimFileError, match="exists"):
        trainer(tmp_path, PassportCallback(PASSPORT, claim=taken)).fit(Classifier(), data())


def test_bits_that_are_not_in_are_noticed(tmp_path: Path) -> None:
    """Without embedding and with too few steps the claim would be one of chance."""
    callback = PassportCallback(PASSPORT, embed=False, claim=tmp_path / "claim")
    with pytest.warns(MissingBitsWarning):
        trainer(tmp_path, callback, max_epochs=1, limit_train_batches=1).fit(
            Classifier(rate=0.0), data(), data("test")
        )


def test_fast_dev_run_writes_no_claim(tmp_path: Path) -> None:
    callback = PassportCallback(PASSPORT, claim=tmp_path / "claim")
    trainer(tmp_path, callback, fast_dev_run=True).fit(Classifier(), data(), data("test"))
    assert callback.claim is None and not (tmp_path / "claim").exists()


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """DDP: the parameters are equal on both, the claim is on the best checkpoint of rank 0."""
    script = f"""
import torch, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from tests.integrations.test_lightning import *
torch.set_num_threads(1)
torch.manual_seed(0)

class Equal(L.Callback):
    def on_train_end(self, trainer, pl_module):
        own = torch.cat([p.detach().flatten() for p in pl_module.parameters()])
        for other in pl_module.all_gather(own):
            assert torch.equal(other, own)
        Path({str(tmp_path)!r}, f"equal{{trainer.global_rank}}").touch()

callback = PassportCallback(PASSPORT, claim={str(tmp_path / "claim")!r})
run = trainer(Path({str(tmp_path)!r}), callback, Equal(), devices=2, strategy="ddp_fork")
run.fit(Classifier(), data(), data("test"))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "equal0").exists() and (tmp_path / "equal1").exists()
    (best,) = tmp_path.glob("epoch=0*.ckpt")
    claim = pp.load_claim(tmp_path / "claim")
    suspect = Classifier.load_from_checkpoint(best).network
    verdict = pp.verify(suspect, PASSPORT, claim)
    assert verdict.accepted and verdict.same_weights and verdict.matched == verdict.total


def test_the_older_package(tmp_path: Path) -> None:
    """pytorch_lightning has classes of its own; the callback works with its Trainer, too."""
    older = pytest.importorskip("pytorch_lightning")

    class Module(older.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = small()

        training_step = Classifier.training_step
        validation_step = Classifier.validation_step

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.05)

    module = Module()
    callback = PassportCallback(PASSPORT, claim=tmp_path / "claim")
    run = trainer(tmp_path, callback, package=older, max_epochs=1)
    run.fit(module, data(rows=128), data("test"))
    assert callback.claim is not None and is_plain(module)
    best = Module.load_from_checkpoint(run.checkpoint_callback.best_model_path).network
    assert pp.verify(best, PASSPORT, callback.claim).accepted


def test_a_missing_lightning_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in [name for name in sys.modules if name.startswith("passportize.integrations.light")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingExtra, match=r"passportize\[lightning\]"):
        import passportize.integrations.lightning  # noqa: F401
