"""The tour runs to its end, and what is committed of it is what it says."""

from __future__ import annotations

import re

import pytest

from tests.support import ROOT

pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
import nbformat

from tools import run_tour


def printed(notebook: nbformat.NotebookNode) -> str:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return "".join(each.get("text", "") for cell in cells for each in cell.outputs)


@pytest.fixture(scope="module")
def committed() -> nbformat.NotebookNode:
    return nbformat.read(run_tour.TOUR, as_version=4)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_it_runs(committed: nbformat.NotebookNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    new = run_tour.run()
    assert [cell.source for cell in new.cells] == [cell.source for cell in committed.cells]
    for text in (printed(new), printed(committed)):
        assert "verdict:   ACCEPTED" in text and "Acme Vision, legal@acme.example" in text
        public, private = re.findall(r"^(?:public|private) +([\d.]+) %", text, re.MULTILINE)
        assert float(public) > 95 and float(private) > 80
        strongest = re.search(r"strangers has ([\d.]+) bits", text)
        assert strongest is not None and float(strongest[1]) < 64


def test_what_is_committed_is_a_whole_run(committed: nbformat.NotebookNode) -> None:
    cells = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    pictures = [each for cell in cells for each in cell.outputs if "data" in each]
    assert len(pictures) >= 4
    assert "Traceback" not in printed(committed)
    text = run_tour.TOUR.read_text(encoding="utf-8")
    assert not re.search(r"/(?:home|tmp|root|work|usr)/", text)
