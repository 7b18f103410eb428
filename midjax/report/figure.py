# SPDX-License-Identifier: Apache-2.0
"""Matplotlib figures as SVG inside the page.

A figure is drawn in stand-in colours that are then replaced by the page's CSS variables, so that
one drawing is right in a light and in a dark page. Text stays text. Nothing is drawn wider than a
phone can show: `WIDTH` inches at 72 points are about 390 CSS pixels.
"""

import dataclasses
import functools
import html
import io
import os
import re
from typing import Any

from midjax import files, units

WIDTH = 5.4
SERIES = 8  # colours in the template: --s0 .. --s7; later series differ by line style

FOREGROUND, MUTED, GRID, SURFACE, ALARM = (f"#fd000{i}" for i in range(1, 6))
_VARIABLES = {
    FOREGROUND: "var(--fg)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    SURFACE: "var(--surface)",
    ALARM: "var(--alarm)",
}
# The page's colours where there is no page: those of its light theme, on white.
_LIGHT = {
    "fg": "#1b1f24",
    "muted": "#59636e",
    "grid": "#dde1e6",
    "surface": "#ffffff",
    "alarm": "#b3261e",
    "s0": "#1f6fb2",
}
_SCALE = 1.6  # pixels per point of a file: a drawing is sized for a phone's page
_STYLES = ("-", "--", ":", "-.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plot:
    """A drawing with what a reader who can't see it is told.

    Attributes:
      svg: markup, self-contained but for the page's CSS variables.
      alt: what it shows, in words and numbers.
      caption: how to read it.
    """

    svg: str
    alt: str
    caption: str


@functools.cache
def pyplot() -> Any:
    """Matplotlib, imported when the first plot is drawn, without a display."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    return pyplot


def new(height: float = 3.3, rows: int = 1) -> tuple[Any, Any]:
    """(figure, axes): quiet axes in the page's colours; several rows share x."""
    fig, axes = pyplot().subplots(
        rows, 1, figsize=(WIDTH, height), layout="constrained", sharex=True, squeeze=False
    )
    for axis in axes[:, 0]:
        axis.set_facecolor("none")
        axis.grid(True, color=GRID, linewidth=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(colors=MUTED, labelsize=10, length=0)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axis.spines[side].set_color(GRID)
        axis.xaxis.label.set_color(MUTED)
        axis.yaxis.label.set_color(MUTED)
    return fig, axes[0, 0] if rows == 1 else axes[:, 0]


def series(index: int) -> dict[str, Any]:
    """Colour and line style of series `index`; distinct for 32 of them."""
    return {"color": color(index), "linestyle": _STYLES[index // SERIES % len(_STYLES)]}


def color(index: int) -> str:
    """Stand-in for the page's series colour `index`."""
    return f"#fe00{index % SERIES:02x}"


def token_axis(axis: Any, label: str = "tokens") -> None:
    """Ticks such as 250K, 1.5M."""
    from matplotlib import ticker

    axis.xaxis.set_major_locator(ticker.MaxNLocator(6))
    axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: units.human(x)))
    axis.set_xlabel(label, fontsize=10)


def legend(axis: Any, count: int) -> None:
    """A legend above the axes, which hides no line."""
    axis.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=min(count, 3),
        frameon=False,
        fontsize=10,
        labelcolor=FOREGROUND,
        borderaxespad=0.2,
        handlelength=1.8,
    )


def finish(fig: Any, *, name: str, alt: str, caption: str) -> Plot:
    """Closes the figure and returns its SVG. `name` makes its ids unique in the page."""
    import matplotlib

    buffer = io.StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}
    with matplotlib.rc_context(settings):
        fig.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    pyplot().close(fig)
    return Plot(svg=_for_page(buffer.getvalue(), name, alt), alt=alt, caption=caption)


def _for_page(svg: str, name: str, alt: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    # The page's font: Matplotlib's own need not be on the reader's machine.
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r"#fe00([0-9a-f]{2})", lambda m: f"var(--s{int(m[1], 16)})", svg)
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view, "Matplotlib writes a viewBox"
    opening = f'<svg role="img" aria-label="{html.escape(alt, quote=True)}" {view[0]}>'
    return opening + svg[svg.index(">") + 1 :]


def write(place: str | os.PathLike[str], plot: Plot) -> str:
    """Writes a plot of one series as a file of its own; returns where.

    Raises:
      ValueError: the file's suffix is not .svg.
    """
    target = files.path(place)
    if target.suffix != ".svg":
        raise ValueError(f"The plot is written as SVG: name a file that ends in .svg, got {place}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(target, _standalone(plot.svg))
    return str(target)


def _standalone(svg: str) -> str:
    """The page's markup as a file: with namespaces, a size, a ground and colours of its own."""
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert box, "finish keeps the viewBox"
    width, height = (_SCALE * float(side) for side in box.groups())
    opening = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width:.0f}" height="{height:.0f}" font-family="sans-serif" '
    )
    svg = svg.replace("<svg ", opening, 1)
    ground = f'<rect width="100%" height="100%" fill="{_LIGHT["surface"]}"/>'
    svg = svg.replace(">", f">{ground}", 1)
    return re.sub(r"var\(--(\w+)\)", lambda found: _LIGHT[found[1]], svg)
