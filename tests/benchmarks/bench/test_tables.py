"""Every table of the bench, measured on tiny data: rows, page, plot, going on, waiting for data."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from benchmarks.bench import published
from benchmarks.bench.budgets import BUDGETS
from benchmarks.bench.networks import AlexNet, ResNet18, build
from benchmarks.bench.table import Table, run
from passportize.errors import InvalidArgument
from passportize.surgery.planning import plan

TABLES = (
    "accuracy", "ablation", "pointnet", "erb", "ambiguity",
    "fine_tuning", "pruning", "triggers", "attacks",
)  # fmt: skip
FEW = {"attacks": ["signature"], "pointnet": ["plain", "keyed"]}
"""Schemes where all would take too long; none of the others is left out."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained models are shared by all tables, as in a real run."""
    return tmp_path_factory.mktemp("bench")


def table_of(name: str) -> Table:
    found: Table = importlib.import_module(f"benchmarks.bench.{name}").TABLE
    return found


def measured(name: str, folder: Path, **changes: Any) -> dict[str, Any]:
    out = folder / f"bench_{name}.json"
    table = replace(table_of(name), **changes)
    schemes = FEW.get(name, list(table.schemes))
    given = ["--budget", "smoke", "--models", str(folder / "models"), "--out", str(out)]
    assert run(table, [*given, "--schemes", *schemes]) == 0
    record: dict[str, Any] = json.loads(out.read_text())
    return record


@pytest.mark.parametrize("name", TABLES)
def test_a_table(name: str, folder: Path) -> None:
    table = table_of(name)
    record = measured(name, folder)
    assert {row["scheme"] for row in record["rows"]} == set(FEW.get(name, table.schemes))
    assert not any(row.get("waits") for row in record["rows"])
    page = (folder / f"bench_{name}.md").read_text()
    assert page.startswith(f"# {table.question}") and "Budget `smoke`" in page
    assert "**Not run**" in page and "Waits for data" not in page
    for heading in table.columns:
        assert f"| {heading} |" in page
    assert (folder / f"bench_{name}.svg").read_text().startswith("<?xml")

    def again(*arguments: object) -> Any:
        raise AssertionError("a finished case was measured again")

    assert measured(name, folder, measure=again)["rows"] == record["rows"]


def test_a_run_that_was_stopped_goes_on_at_its_row(tmp_path: Path) -> None:
    asked: list[int] = []

    def rows(bench: object, case: object, stop: int = 2) -> Any:
        def value(share: int) -> dict[str, Any]:
            if share == stop:
                raise KeyboardInterrupt
            asked.append(share)
            return {"after": 50.0}

        for share in range(4):
            yield {"share": share, "scope": "global"}, partial(value, share)

    table = replace(table_of("pruning"), measure=rows)
    out = tmp_path / "bench_pruning.json"
    given = ["--budget", "smoke", "--schemes", "plain", "--out", str(out)]
    with pytest.raises(KeyboardInterrupt):
        run(table, given)
    assert [row["share"] for row in json.loads(out.read_text())["rows"]] == [0, 1]
    assert "**Not run to the end**, rows are missing: digits" in out.with_suffix(".md").read_text()
    run(replace(table, measure=partial(rows, stop=-1)), given)
    assert [row["share"] for row in json.loads(out.read_text())["rows"]] == [0, 1, 2, 3]
    assert asked == [0, 1, 2, 3]
    assert "Not run to the end" not in out.with_suffix(".md").read_text()


def test_what_is_expected_of_the_schemes(folder: Path) -> None:
    rows = {row["scheme"]: row for row in measured("accuracy", folder)["rows"]}
    for scheme in ("keyed", "signature"):
        assert rows[scheme]["accepted"] and rows[scheme]["matched"] == rows[scheme]["total"]
    assert rows["plain"]["accepted"] is None and rows["plain"]["verification"] is None
    assert rows["keyed"]["difference"] == pytest.approx(
        abs(rows["keyed"]["deployment"] - rows["keyed"]["verification"])
    )


def test_a_set_that_is_not_there_waits_and_is_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchvision")
    out = tmp_path / "bench_accuracy.json"
    given = ["--budget", "smoke", "--sets", "cifar10", "--root", str(tmp_path / "nowhere")]
    for _ in range(2):
        run(table_of("accuracy"), [*given, "--schemes", "plain", "--out", str(out)])
        rows = json.loads(out.read_text())["rows"]
        assert len(rows) == 1 and rows[0]["waits"] is True
        assert "waits for data. CIFAR10 is not under" in capsys.readouterr().out
    page = out.with_suffix(".md").read_text()
    assert "**Waits for data**" in page and "CIFAR-10." in page
    assert str(tmp_path) not in page


def test_rows_of_two_budgets_are_not_mixed(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    out = tmp_path / "bench_accuracy.json"
    given = ["--sets", "cifar10", "--root", str(tmp_path), "--schemes", "plain", "--out", str(out)]
    run(table_of("accuracy"), ["--budget", "smoke", *given])
    before = out.read_text()
    with pytest.raises(SystemExit, match="another budget"):
        run(table_of("accuracy"), ["--budget", "smoke", "--epochs", "2", *given])
    assert out.read_text() == before


def test_the_page_of_published_rows(folder: Path) -> None:
    for name in ("accuracy", "erb", "fine_tuning"):
        measured(name, folder)
    assert published.main(["--results", str(folder)]) == 0
    page = (folder / "bench.md").read_text()
    lines = [
        line for line in page.splitlines() if line.startswith("| ") and "published" not in line
    ]
    assert len(lines) == 10 and all("waits for data" in line for line in lines)
    assert [float(line.split("|")[2]) for line in lines] == [
        *(94.7, 94.64, 75.28, 73.11, 53.62, 0.9, 71.72, 91.97, 47.61, 79.96)
    ]


def test_the_real_set_comes_before_what_stands_in() -> None:
    row = {"network": "resnet18", "norm": "bn", "scheme": "keyed", "seed": 0, "deployment": 94.5}
    record = {
        "budget": BUDGETS["gpu"].to_dict(),
        "rows": [{**row, "set": "cifar10"}, {**row, "set": "fashion-mnist", "deployment": 90.0}],
    }
    line = published.page({"bench_accuracy": record}).splitlines()
    found = next(one for one in line if one.startswith("| deployment, CIFAR-10"))
    assert "**94.50**" in found and "the same set" in found and "90.00" not in found


@pytest.mark.parametrize("norm", ["bn", "gn"])
@pytest.mark.parametrize(
    ("network", "bits", "parameters"), [("resnet18", 4800, 11_173_962), ("alexnet", 1152, None)]
)
def test_full_width_is_that_of_the_papers(
    network: str, norm: str, bits: int, parameters: int | None
) -> None:
    model = build(network, norm, 1.0, torch.zeros(1, 3, 32, 32), 10, 0)
    assert sum(site.bits for site in plan(model).sites if site.bits) == bits
    if parameters is not None:
        assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("size", [8, 28, 32])
def test_small_pictures(size: int) -> None:
    x = torch.zeros(2, 1, size, size)
    for model in (ResNet18(1, 5, 0.125), AlexNet(1, 5, 0.125, size=size)):
        assert model(x).shape == (2, 5)


def test_networks_that_there_are_not() -> None:
    with pytest.raises(InvalidArgument, match="use one of resnet18"):
        build("vgg", "bn", 1.0, torch.zeros(1, 3, 32, 32), 10, 0)
    with pytest.raises(InvalidArgument, match="does not take"):
        build("pointnet", "bn", 1.0, torch.zeros(1, 3, 32, 32), 10, 0)
