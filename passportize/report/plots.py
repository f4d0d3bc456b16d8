"""The pictures of a report, as SVG text; drawn on figures of their own, so nothing is global.

Each is drawn twice, for wide and for narrow pages, so that letters have the same size on both. Its
own style sheet turns the colours where the reader's screen is dark.
"""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from passportize.errors import MissingExtra
from passportize.signature.reading import Reading

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Picture",
    "accuracy_picture",
    "data_uri",
    "response_picture",
    "strength_picture",
    "training_picture",
]

# Okabe and Ito's palette, which colour-blind readers can tell apart; marks differ in shape too.
BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#8A94A6", "#1F2933"

# The same on a dark ground; white edges become that ground.
_DARK = {
    BLUE: "#56B4E9",
    ORANGE: "#F0884A",
    GREEN: "#3FC79A",
    GREY: "#9AA6B8",
    INK: "#E6EBF2",
    "#4A5568": "#B3BDCB",
    "#B8C0CC": "#5A6675",
    "#E6EAF0": "#333C49",
    "#FFFFFF": "#171C24",
}
_WIDE, _NARROW = 7.2, 3.7

_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#B8C0CC",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "grid.color": "#E6EAF0",
    "legend.frameon": False,
    "svg.hashsalt": "passportize",
    "text.color": INK,
    "xtick.color": "#4A5568",
    "ytick.color": "#4A5568",
}


@dataclass(frozen=True)
class Picture:
    """One picture, drawn for two widths.

    Attributes:
        wide, narrow: SVG text.
    """

    wide: str
    narrow: str


def response_picture(reading: Reading) -> Picture:
    """Histogram of the responses of all channels, one for each value of the signature bit."""
    signs = reading.bits.double() * 2 - 1
    responses = (signs * reading.confidence)[reading.confidence > 0]
    expected = reading.expected[reading.confidence > 0]

    def draw(axes: Axes, narrow: bool) -> None:
        # A few large responses would squeeze the rest; the ends collect what lies beyond.
        far = float(responses.abs().quantile(0.99)) * 1.1 if len(responses) else 1.0
        reach = max(4.0, far)
        edges = [reach * (i - 24) / 24 for i in range(49)]
        # Where both lie on each other, the outlines show both.
        for bit, colour, line in ((0, ORANGE, "--"), (1, BLUE, "-")):
            values = responses[expected == bit].clamp(-reach, reach).tolist()
            axes.hist(values, bins=edges, color=colour, alpha=0.35, histtype="stepfilled")
            axes.hist(
                values,
                bins=edges,
                edgecolor=colour,
                linestyle=line,
                linewidth=1.6,
                histtype="step",
                label=f"bit of the key is {bit}",
            )
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_xlabel(_label("response of a channel (its sign is the bit that is read)", narrow))
        axes.set_ylabel("channels")
        columns = 1 if narrow else 2
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns)

    return _twice(draw, 3.0)


def accuracy_picture(
    owner: float, public: float | None, strangers: Mapping[str, Sequence[float]], chance: float
) -> Picture:
    """Private accuracy under the owner's key next to that under strangers' keys.

    Args:
        owner: Under the owner's key, in percent.
        public: Of the public branch, in percent.
        strangers: One series of percentages for every way of measuring them.
        chance: What guessing gives, in percent.
    """

    def draw(axes: Axes, narrow: bool) -> None:
        rows = ["owner's key", *strangers]
        if public is not None:
            axes.axvline(public, color=GREEN, linewidth=1.4, linestyle="--")
            axes.text(
                public, -0.62, f"public branch {public:.1f} % ", color=GREEN, ha="right", fontsize=9
            )
        axes.axvline(chance, color=GREY, linewidth=1.4, linestyle=":")
        axes.text(chance, -0.62, f" chance {chance:.0f} %", color="#4A5568", fontsize=9)
        axes.scatter([owner], [0], marker="D", s=70, color=BLUE, zorder=3)
        axes.text(owner - 2, 0, f"{owner:.1f} %", ha="right", va="center", fontsize=9, color=BLUE)
        for row, values in enumerate(strangers.values(), start=1):
            # Spread a little, so that equal values can be counted.
            heights = [row + 0.3 * ((index % 5) - 2) / 2.5 for index in range(len(values))]
            axes.scatter(
                values, heights, marker="o", s=26, color=ORANGE, alpha=0.7, linewidths=0, zorder=3
            )
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.45, -0.9)
        axes.set_xlim(0, 104)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(_label("accuracy of the private branch in percent", narrow))

    return _twice(draw, 1.5 + 0.55 * len(strangers))


def strength_picture(owner: float, strangers: Sequence[float], threshold: float) -> Picture:
    """Strength of the signature under the owner's key and under strangers' keys, in bits."""

    def draw(axes: Axes, narrow: bool) -> None:
        # log2(1 + bits): strangers' few bits and the owner's hundreds on one axis.
        edges = [2 ** (step / 4) - 1 for step in range(60) if 2 ** (step / 4) - 1 <= 4 * threshold]
        axes.hist(strangers, bins=edges, color=ORANGE, alpha=0.8, edgecolor="white", linewidth=0.4)
        axes.set_xscale("function", functions=(_squeeze, _stretch))
        axes.set_yscale("symlog", linthresh=1)
        axes.axvline(threshold, color=INK, linewidth=1.4, linestyle="--")
        axes.axvline(owner, color=BLUE, linewidth=3)
        top = axes.get_ylim()[1] * 3
        axes.set_ylim(0, top)
        axes.text(threshold, top * 0.5, f" threshold {threshold:g}", va="center", fontsize=9)
        axes.text(
            owner,
            top * 0.15,
            f"owner {owner:.0f} ",
            ha="right",
            va="center",
            color=BLUE,
            fontsize=9,
        )
        ticks = [0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000]
        limit = max(owner, threshold) * 1.25
        axes.set_xticks([tick for tick in ticks if tick <= limit])
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.minorticks_off()
        axes.set_xlim(0, limit)
        axes.set_xlabel(_label("strength of the signature in bits, -log2 p", narrow))
        axes.set_ylabel(f"keys of {len(strangers)} strangers")

    return _twice(draw, 2.6)


def training_picture(series: Mapping[str, Sequence[float]]) -> Picture:
    """Losses over epochs, one line each."""
    from matplotlib.ticker import MaxNLocator

    marks = ((GREY, "--", ""), (BLUE, "-", "o"), (ORANGE, "-", "^"), (GREEN, ":", "s"))

    def draw(axes: Axes, narrow: bool) -> None:
        for (name, values), (colour, line, mark) in zip(series.items(), marks, strict=False):
            epochs = range(1, len(values) + 1)
            axes.plot(
                epochs,
                values,
                label=name,
                color=colour,
                linestyle=line,
                marker=mark or None,
                markersize=3.5,
                linewidth=1.6,
            )
        axes.set_yscale("symlog", linthresh=0.01)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        axes.set_ylabel("mean loss")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2 if narrow else 4)

    return _twice(draw, 2.7)


def data_uri(svg: str) -> str:
    """An SVG picture as the source of an ``img`` element."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _twice(draw: Callable[[Axes, bool], None], height: float) -> Picture:
    """Draw for wide pages and for narrow ones.

    Args:
        draw: Draws on the axes it is given; the other argument says that there is little room.
        height: In inches, of the wide one.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra(
            "reports need matplotlib, which is not installed: pip install 'passportize[plots]'"
        ) from error
    drawn = []
    for width, narrow in ((_WIDE, False), (_NARROW, True)):
        with matplotlib.rc_context(_STYLE):
            figure = Figure(figsize=(width, height + 0.3 * narrow), layout="constrained")
            axes = figure.subplots()
            draw(axes, narrow)
            drawn.append(_svg(figure))
    return Picture(*drawn)


def _label(text: str, narrow: bool) -> str:
    return textwrap.fill(text, 36) if narrow else text


def _svg(figure: Figure) -> str:
    target = io.StringIO()
    # No date and no creator: the same numbers give the same file. No ground: the page has one.
    figure.savefig(
        target,
        format="svg",
        transparent=True,
        metadata={"Date": None, "Creator": None, "Format": None},
    )
    text = target.getvalue()
    begin = text.index("<svg")
    end = text.index(">", begin) + 1
    return text[begin:end] + f"<style>{_dark_style()}</style>" + text[end:]


def _dark_style() -> str:
    """The other colours, for elements that bear the first ones in their own style."""
    rules = "".join(
        f'[style*="{what}: {colour.lower()}"]{{{what}:{other}!important}}'
        for colour, other in _DARK.items()
        for what in ("fill", "stroke")
    )
    return f"@media screen and (prefers-color-scheme: dark){{{rules}}}"


def _squeeze(bits: Any) -> Any:
    import numpy as np

    return np.log2(1.0 + np.maximum(bits, 0.0))


def _stretch(place: Any) -> Any:
    import numpy as np

    return np.exp2(place) - 1.0
