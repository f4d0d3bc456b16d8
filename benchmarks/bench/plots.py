"""One picture for each table: a line for each scheme, or a point for each case."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bench.columns import Row, cases
from passportize.report.plots import BLUE, GREEN, GREY, ORANGE
from passportize.utils.files import write_atomically

__all__ = ["Plot"]

# Okabe and Ito's palette; marks and dashes differ as well.
_LOOKS = [(GREY, "o", ":"), (ORANGE, "s", "--"), (BLUE, "^", "-"), (GREEN, "D", "-.")]
_MORE = [("#CC79A7", "v", "--"), ("#56B4E9", "P", ":"), ("#E69F00", "X", "-")]

_FEW = 6
"""Words that fit below a panel; more stand beside it, in lines."""


@dataclass(frozen=True)
class Plot:
    """What is drawn.

    Attributes:
        x: Name of the key along the horizontal axis; words are spread evenly, many of them along
            the vertical axis.
        y: Names of the numbers that are drawn, one panel each, with their titles.
        series: Name of the key that has a line of its own for each value.
        panels: Name of the key that has panels of its own for each value, if any.
    """

    x: str
    y: dict[str, str]
    series: str = "scheme"
    panels: str | None = None

    def draw(self, rows: Sequence[Row], path: Path) -> None:
        """Write the picture as SVG; nothing where there is nothing to draw."""
        rows = [row for row in rows if any(row.get(name) is not None for name in self.y)]
        if not rows:
            return
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        order: list[Any] = list(
            dict.fromkeys(row[self.x] for row in rows if row.get(self.x) is not None)
        )
        words = any(isinstance(value, str) for value in order)
        if not words:
            order.sort()
        beside = words and len(order) > _FEW
        kinds = cases(rows, [self.panels] if self.panels else [])
        height = 0.9 + 0.19 * len(order) if beside else 3.4
        size = 4.6 * len(self.y), height * len(kinds)
        with rc_context({"svg.hashsalt": "passportize", "font.size": 9, "svg.fonttype": "path"}):
            figure = Figure(figsize=size, layout="constrained")
            axes = figure.subplots(len(kinds), len(self.y), squeeze=False, sharey=beside)
            for line, (kind, of_kind) in zip(axes, kinds.items(), strict=True):
                for panel, (name, title) in zip(line, self.y.items(), strict=True):
                    for number, series in enumerate(dict.fromkeys(r[self.series] for r in rows)):
                        own = [row for row in of_kind if row[self.series] == series]
                        self._line(panel, own, name, order, number, words, beside)
                    if beside:
                        panel.set_yticks(range(len(order)), order)
                        panel.set_ylim(len(order) - 0.5, -0.5)
                    elif words:
                        panel.set_xticks(range(len(order)), order, rotation=45, ha="right")
                    else:
                        panel.set_xlabel(self.x)
                    panel.set_title(", ".join([title, *map(str, kind)]))
                    panel.grid(color="#E6EAF0")
            axes[0][0].legend(frameon=False, fontsize=8)
            text = io.StringIO()
            figure.savefig(text, format="svg", metadata={"Date": None})
        write_atomically(path, text.getvalue().encode(), overwrite=True)

    def _line(
        self,
        panel: Any,
        rows: Sequence[Row],
        name: str,
        order: Sequence[Any],
        number: int,
        words: bool,
        beside: bool,
    ) -> None:
        """Mean and deviation over the seeds of one number of one series."""
        found = {
            value: [float(row[name]) for row in own if row.get(name) is not None]
            for (value,), own in cases(rows, [self.x]).items()
        }
        values = [value for value in order if found.get(value)]
        if not values:
            return
        colour, mark, dash = (_LOOKS + _MORE)[number % 7]
        places = [order.index(value) + 0.08 * (number - 1) if words else value for value in values]
        means = [statistics.fmean(found[value]) for value in values]
        spread = [
            statistics.stdev(found[value]) if len(found[value]) > 1 else 0.0 for value in values
        ]
        look = {
            "color": colour,
            "marker": mark,
            "markersize": 4,
            "linestyle": "" if words else dash,
            "label": str(rows[0][self.series]),
            "capsize": 2,
        }
        if beside:
            panel.errorbar(means, places, xerr=spread, **look)
        else:
            panel.errorbar(places, means, yerr=spread, **look)
