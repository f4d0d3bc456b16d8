"""The command line: outputs, exit codes, errors, and that no secret is ever shown."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from typer.testing import CliRunner

import passportize as pp
from passportize.cli.application import application
from passportize.cli.data_input import load_data
from passportize.cli.inputs import PASSPHRASE
from passportize.errors import InvalidArgument
from passportize.release.checkpoint import load_weights, save_weights
from tests.support import ROOT

MODEL = """
import torch
from torch import nn

def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4),
    )

def no_norm():
    return nn.Linear(3, 3)

def numbers():
    return 7
"""


@pytest.fixture(scope="module")
def protected(tmp_path_factory):
    """A folder with passport, claim, training checkpoint, released weights, data and model code."""
    folder = tmp_path_factory.mktemp("protected")
    (folder / "small_model.py").write_text(MODEL)
    namespace: dict = {}
    exec(MODEL, namespace)
    model = namespace["small"]()
    passport = pp.Passport.generate("Acme", date="2026-01-31", secret=bytes(range(32)))
    passport.save(folder / "acme.passport")
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 4
    prototypes = torch.randn(4, 1, 8, 8, generator=generator)
    images = prototypes[labels] + 0.3 * torch.randn(64, 1, 8, 8, generator=generator)
    pp.passportize(model, passport, example_inputs=images[:2])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(120):
        loss = pp.joint_loss(model, images, labels, functional.cross_entropy)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    torch.save({"state_dict": model.state_dict(), "epoch": 120}, folder / "last.pth.tar")
    pp.save_claim(model, folder / "acme.claim")
    pp.unpassportize(model)
    save_weights(folder / "released.safetensors", model.state_dict())
    save_weights(folder / "data.safetensors", {"images": images, "labels": labels})
    return folder


@pytest.fixture
def call(monkeypatch, protected):
    """Run a command in the folder; give exit code, standard output, standard error."""
    monkeypatch.chdir(protected)
    monkeypatch.delenv(PASSPHRASE, raising=False)

    def run(*arguments: str):
        result = CliRunner().invoke(application(), list(arguments))
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert bytes(range(32)).hex() not in result.output + result.stderr
        return result.exit_code, result.stdout, result.stderr

    return run


VERIFY = ("verify", "released.safetensors", "--passport", "acme.passport")
WITH_CLAIM = (*VERIFY, "--claim", "acme.claim")
WITH_MODEL = ("--model", "small_model:small")


def test_help_and_version(call):
    assert call("--help")[0] == 0
    assert call("--version") == (0, f"{pp.__version__}\n", "")


def test_keygen_writes_a_private_file(call, tmp_path):
    out = tmp_path / "new.passport"
    code, text, _ = call("keygen", "Acme", "--contact", "a@b.c", "--no-passphrase", "-o", str(out))
    assert code == 0
    passport = pp.Passport.load(out)
    assert (passport.owner, passport.contact) == ("Acme", "a@b.c")
    assert passport.commitment() in text
    assert out.stat().st_mode & 0o777 == 0o600
    before = out.read_bytes()
    code, _, errors = call("keygen", "Acme", "--no-passphrase", "-o", str(out))
    assert code == 2 and "exists already" in errors and out.read_bytes() == before


def test_keygen_seals_with_a_passphrase_from_file_or_environment(call, tmp_path, monkeypatch):
    (tmp_path / "words").write_text("correct horse\nignored\n")
    sealed = tmp_path / "sealed.passport"
    words = ("--passphrase-file", str(tmp_path / "words"))
    code, text, _ = call("keygen", "Acme", "-o", str(sealed), "--json", *words)
    assert code == 0 and json.loads(text)["sealed"] is True
    assert "correct horse" not in text
    assert pp.Passport.load(sealed, "correct horse").commitment() == json.loads(text)["commitment"]
    code, _, errors = call("inspect", str(sealed))
    assert code == 2 and PASSPHRASE in errors
    monkeypatch.setenv(PASSPHRASE, "correct horse")
    code, text, _ = call("inspect", str(sealed), "--json")
    assert code == 0 and json.loads(text)["owner"] == "Acme"
    monkeypatch.setenv(PASSPHRASE, "wrong")
    code, text, _ = call("inspect", str(sealed), "--json")
    assert code == 2 and json.loads(text)["error"] == "WrongPassphrase"


def test_inspect_and_commitment(call):
    record = json.loads(call("inspect", "acme.passport", "--json")[1])
    assert record["owner"] == "Acme" and record["date"] == "2026-01-31"
    claim = json.loads(call("inspect", "acme.claim", "--json")[1])
    assert claim["bits"] == 112 and claim["commitment"] == record["commitment"]
    assert claim["digest"] in call("inspect", "acme.claim")[1]
    assert call("commitment", "acme.passport")[1].strip() == record["commitment"]
    assert call("commitment", "acme.passport", "--check", record["commitment"])[0] == 0
    assert call("commitment", "acme.passport", "--check", "00" * 32)[0] == 1


def test_plan(call):
    code, text, _ = call("plan", "small_model:small", "--input-size", "1,8,8")
    assert code == 0 and "112 bits" in text and "upstream" in text
    code, text, _ = call("plan", "small_model:small", "--input-size", "1,8,8", "--json")
    assert code == 0 and json.loads(text)["bits"] == 112
    arguments = ("--where", "1", "--input-size", "1,8,8", "--json", "--preset", "signature")
    assert json.loads(call("plan", "small_model:small", *arguments)[1])["bits"] == 16


def test_plan_of_a_timm_model_with_arguments(call):
    code, text, _ = call("plan", "resnet10t", "--arg", "in_chans=1", "--json")
    assert code == 0 and json.loads(text)["bits"] == 2936


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("plan", "no_such_model"), "InvalidArgument"),
        (("plan", "small_model:missing"), "InvalidArgument"),
        (("plan", "small_model:numbers"), "InvalidArgument"),
        (("plan", "small_model:no_norm", "--input-size", "3"), "NoNormalization"),
        (("plan", "small_model:small", "--input-size", "x"), "InvalidArgument"),
        (("plan", "small_model:small", "--preset", "x"), "InvalidArgument"),
        (("plan", "resnet10t", "--arg", "in_chans"), "InvalidArgument"),
        (("inspect", "missing"), "InvalidArgument"),
        (("inspect", "small_model.py"), "PassportFileError"),
        (("strip", "missing.pth", "out.pth"), "CheckpointError"),
        (("strip", "last.pth.tar", "out.pth", "--ema"), "CheckpointError"),
        (("strip", "last.pth.tar", "missing/out.pth"), "CheckpointError"),
        (("export", "last.pth.tar", "out.x", "--to", "x"), "InvalidArgument"),
        (("export", "last.pth.tar", "acme.claim"), "CheckpointError"),
        (("strip", "last.pth.tar", "out.pth", "--model", "resnet10t"), "CheckpointError"),
        (VERIFY, "InvalidArgument"),
        ((*WITH_CLAIM, "--data", "digits"), "InvalidArgument"),
        ((*WITH_CLAIM, *WITH_MODEL, "--data", "nowhere"), "DatasetError"),
        ((*WITH_CLAIM, *WITH_MODEL, "--data", "released.safetensors"), "DatasetError"),
        ((*VERIFY, "--claim", "acme.passport"), "ClaimFileError"),
        (("keygen", "Acme", "-o", "never.passport"), "InvalidArgument"),
    ],
)
def test_errors_are_one_message_and_exit_code_2(call, arguments, error):
    code, text, _ = call(*arguments, "--json")
    assert code == 2
    assert json.loads(text)["error"] == error
    code, text, errors = call(*arguments)
    assert code == 2 and text == "" and "error:" in errors and "Traceback" not in errors


def test_verify_accepts_the_owner(call):
    code, text, _ = call(*WITH_CLAIM)
    assert code == 0 and "ACCEPTED" in text
    code, text, _ = call(*WITH_CLAIM, *WITH_MODEL, "--data", "data.safetensors", "--json")
    verdict = json.loads(text)
    assert code == 0 and verdict["accepted"] is True
    assert verdict["matched"] == verdict["total"] == 112
    assert verdict["public_accuracy"] > 90 and verdict["same_weights"] is True


def test_verify_reads_the_plain_part_of_a_training_checkpoint(call):
    code, text, _ = call("verify", "last.pth.tar", *WITH_CLAIM[2:], "--json")
    assert code == 0 and json.loads(text)["accepted"] is True


def test_verify_refuses_a_stranger(call, tmp_path):
    stranger = tmp_path / "stranger.passport"
    pp.Passport.generate("Stranger", date="2026-11-28", secret=b"s" * 32).save(stranger)
    arguments = ("verify", "released.safetensors", "--passport", str(stranger))
    code, text, _ = call(*arguments, *WITH_MODEL, "--input-size", "1,8,8", "--json")
    assert code == 1 and json.loads(text)["accepted"] is False
    code, text, _ = call(*arguments, "--claim", "acme.claim", "--json")
    assert code == 2 and json.loads(text)["error"] == "WrongPassport"


def test_verify_cannot_judge_another_architecture(call, tmp_path):
    other = tmp_path / "other.safetensors"
    save_weights(other, nn.Linear(3, 2).state_dict())
    code, text, _ = call("verify", str(other), *WITH_CLAIM[2:], "--json")
    assert code == 2 and json.loads(text)["accepted"] is None


def test_verify_writes_a_report(call, tmp_path):
    report = tmp_path / "report.html"
    code, _, _ = call(*WITH_CLAIM, "--report", str(report))
    assert code == 0 and "112 / 112" in report.read_text()


@pytest.mark.parametrize("name", ["plain.pth", "plain.safetensors"])
def test_strip_gives_what_the_plain_model_loads(call, tmp_path, protected, name):
    out = tmp_path / name
    code, text, _ = call("strip", "last.pth.tar", str(out), *WITH_MODEL, "--json")
    record = json.loads(text)
    assert code == 0 and record["left_out"] == 10
    released = load_weights(protected / "released.safetensors")
    stripped = load_weights(out)
    assert set(stripped) == set(released)
    assert all(torch.equal(stripped[key], released[key]) for key in released)
    assert call("strip", "last.pth.tar", str(out))[0] == 2
    assert call("strip", "last.pth.tar", str(out), "--force")[0] == 0


def test_strip_refuses_what_lacks_the_bits(call, tmp_path, protected):
    asked = ("--passport", "acme.passport", "--claim", "acme.claim")
    code, text, _ = call("strip", "last.pth.tar", str(tmp_path / "a.pth"), *asked)
    assert code == 0 and "112 of 112 bits are in" in text
    weights = load_weights(protected / "last.pth.tar")
    dice = torch.Generator().manual_seed(0)
    for tensor in weights.values():
        if tensor.dim() > 1:
            tensor.copy_(torch.randn(tensor.shape, generator=dice))
    torch.save({"state_dict": weights}, tmp_path / "lost.pth.tar")
    code, _, errors = call("strip", str(tmp_path / "lost.pth.tar"), str(tmp_path / "b.pth"), *asked)
    assert code == 2 and "prove nothing" in errors and not (tmp_path / "b.pth").exists()
    code, _, errors = call("strip", "last.pth.tar", str(tmp_path / "b.pth"), *asked[:2])
    assert code == 2 and "go together" in errors


def test_export(call, tmp_path, protected):
    out = tmp_path / "plain.safetensors"
    code, text, _ = call("export", "last.pth.tar", str(out), "--json")
    assert code == 0 and json.loads(text) == {
        "file": str(out),
        "format": "safetensors",
        "averaged": False,
    }
    assert set(load_weights(out)) == set(load_weights(protected / "released.safetensors"))
    program = tmp_path / "plain.pt2"
    shape = ("--to", "torch-export", "--input-size", "1,8,8")
    code, _, errors = call("export", "last.pth.tar", str(program), *shape, *WITH_MODEL)
    assert code == 0 and program.stat().st_size > 0, errors


def test_warnings_are_one_line(call, tmp_path, protected):
    readable = tmp_path / "readable.passport"
    readable.write_bytes((protected / "acme.passport").read_bytes())
    readable.chmod(0o644)
    code, text, errors = call("commitment", str(readable))
    assert code == 0 and len(text.split()) == 1
    assert errors.startswith("warning:") and errors.count("\n") == 1 and "chmod 600" in errors


def test_timm_train_hands_everything_to_the_launcher(call, monkeypatch):
    given = []
    monkeypatch.setattr("passportize.integrations.timm.launcher.launch", given.append)
    line = ("--passport", "acme.passport", "train.py", "data", "--model", "resnet18", "--help")
    assert call("timm-train", *line)[0] == 0
    assert given == [list(line)]


def test_without_typer_the_command_says_what_to_install():
    code = (
        "import sys\n"
        "sys.modules['typer'] = None\n"
        "import passportize\n"
        "from passportize.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "pip install 'passportize[cli]'" in done.stderr


def test_importing_the_library_loads_no_extra():
    code = (
        "import sys, passportize\n"
        "extras = {'typer', 'rich', 'timm', 'matplotlib', 'jinja2', 'sklearn'}\n"
        "extras |= {'rfc8785', 'rfc3161_client'}\n"
        "extras |= {'lightning', 'pytorch_lightning', 'transformers', 'accelerate'}\n"
        "assert not extras & set(sys.modules), extras & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def data_module(folder: Path) -> str:
    (folder / "own_data.py").write_text(
        "import torch\n"
        "def pairs():\n"
        "    return [(torch.zeros(3, 1, 8, 8), torch.tensor([0, 1, 2]))]\n"
        "def broken():\n"
        "    raise OSError('no such disk')\n"
    )
    return "own_data:pairs"


def idx_files(folder: Path) -> str:
    for split, count in (("train", 20), ("t10k", 10)):
        header = b"\x00\x00\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (count, 28, 28))
        pixels = bytes(i % 251 for i in range(count * 28 * 28))
        (folder / f"{split}-images-idx3-ubyte").write_bytes(header + pixels)
        labels = b"\x00\x00\x08\x01" + count.to_bytes(4, "big") + bytes(i % 4 for i in range(count))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(labels)
    return f"fashion-mnist:{folder}"


@pytest.mark.parametrize(
    ("source", "samples"),
    [(data_module, 3), (idx_files, 10), (lambda folder: "digits", 359)],
    ids=["function", "fashion-mnist", "digits"],
)
def test_sources_of_data(call, tmp_path, monkeypatch, source, samples):
    name = source(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    batches = list(load_data(name, None, 64))
    assert sum(len(labels) for _, labels in batches) == samples


# timm leaves the files of its dataset open until they are collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_folder_of_pictures(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    timm = pytest.importorskip("timm")
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(2):
            pillow.new("RGB", (40, 30), (number, 9, 9)).save(tmp_path / name / f"{number}.png")
    batches = list(load_data(str(tmp_path), timm.create_model("resnet10t", num_classes=2), 3))
    assert [tuple(images.shape) for images, _ in batches] == [(3, 3, 176, 176), (1, 3, 176, 176)]
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 0, 1, 1]
    with pytest.raises(InvalidArgument, match="--model"):
        load_data(str(tmp_path), None, 3)


def test_data_that_cannot_be_had(tmp_path, monkeypatch):
    data_module(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InvalidArgument, match="no such disk"):
        load_data("own_data:broken", None, 8)
    with pytest.raises(InvalidArgument, match="batch-size"):
        load_data("digits", None, 0)


def test_passphrases_are_asked_for_where_there_is_a_person(call, tmp_path, monkeypatch):
    monkeypatch.setattr("passportize.cli.inputs.is_interactive", lambda: True)
    asked: list[str] = []

    def answer(question: str, **options: object) -> str:
        assert options["hide_input"] and options["err"]
        asked.append(question)
        return "open sesame"

    monkeypatch.setattr("passportize.cli.inputs.typer.prompt", answer)
    out = tmp_path / "asked.passport"
    code, text, _ = call("keygen", "Acme", "-o", str(out), "--json")
    assert code == 0 and json.loads(text)["sealed"] is True
    assert call("commitment", str(out))[0] == 0
    assert len(asked) == 2 and "open sesame" not in text
    both = ("--no-passphrase", "--passphrase-file", str(out))
    assert call("keygen", "Acme", "-o", str(tmp_path / "x"), *both)[0] == 2


def test_plan_explains_one_norm(call):
    code, text, _ = call("plan", "resnet10t", "--explain", "layer1.0.bn2")
    assert code == 0 and "taken        layer1.0.conv2.weight" in text
    code, text, _ = call("plan", "resnet10t", "--explain", "layer1.0.bn2", "--json")
    assert code == 0 and json.loads(text)["source"] == "fx-meta"
    code, _, error = call("plan", "resnet10t", "--explain", "layer1.0.bn9")
    assert code == 2 and "Did you mean layer1.0.bn" in error
