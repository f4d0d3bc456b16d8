"""One picture for each table: a line for each scheme, or a point for each case."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bench.columns import Row
from passportize.report.plots import BLUE, GREEN, GREY, ORANGE
from passportize.utils.files import write_atomically

__all__ = ["Plot"]

# Okabe and Ito's palette; marks and dashes differ as well.
_LOOKS = [(GREY, "o", ":"), (ORANGE, "s", "--"), (BLUE, "^", "-"), (GREEN, "D", "-.")]
_MORE = [("#CC79A7", "v", "--"), ("#56B4E9", "P", ":"), ("#E69F00", "X", "-")]


@dataclass(frozen=True)
class Plot:
    """What is drawn.

    Attributes:
        x: Name of the key along the horizontal axis; words are spread evenly.
        y: Names of the numbers that are drawn, one panel each, with their titles.
        series: Name of the key that has a line of its own for each value.
    """

    x: str
    y: dict[str, str]
    series: str = "scheme"

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
        with rc_context({"svg.hashsalt": "passportize", "font.size": 9, "svg.fonttype": "path"}):
            figure = Figure(figsize=(4.6 * len(self.y), 3.4), layout="constrained")
            axes = figure.subplots(1, len(self.y), squeeze=False)[0]
            for panel, (name, title) in zip(axes, self.y.items(), strict=True):
                for number, one in enumerate(dict.fromkeys(row[self.series] for row in rows)):
                    colour, mark, dash = (_LOOKS + _MORE)[number % 7]
                    own = [row for row in rows if row[self.series] == one]
                    places: list[Any] = []
                    means, deviations = [], []
                    for place, value in enumerate(order):
                        found = [
                            float(row[name])
                            for row in own
                            if row.get(self.x) == value and row.get(name) is not None
                        ]
                        if found:
                            places.append(place + 0.08 * (number - 1) if words else value)
                            means.append(statistics.fmean(found))
                            deviations.append(statistics.stdev(found) if len(found) > 1 else 0.0)
                    panel.errorbar(
                        places,
                        means,
                        deviations,
                        color=colour,
                        marker=mark,
                        markersize=4,
                        linestyle="" if words else dash,
                        label=str(one),
                        capsize=2,
                    )
                if words:
                    panel.set_xticks(range(len(order)), order, rotation=45, ha="right")
                else:
                    panel.set_xlabel(self.x)
                panel.set_title(title)
                panel.grid(color="#E6EAF0")
            axes[0].legend(frameon=False, fontsize=8)
            text = io.StringIO()
            figure.savefig(text, format="svg", metadata={"Date": None})
        write_atomically(path, text.getvalue().encode(), overwrite=True)
