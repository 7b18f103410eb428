# SPDX-License-Identifier: Apache-2.0
"""A schedule before the run: learning rate over tokens, as one SVG file to look at."""

import os
import re
from collections.abc import Sequence

from midjax import files
from midjax.report import figure

# The page's colours where there is no page: those of its light theme, on white.
_COLORS = {
    "fg": "#1b1f24",
    "muted": "#59636e",
    "grid": "#dde1e6",
    "surface": "#ffffff",
    "alarm": "#b3261e",
    "s0": "#1f6fb2",
}
_SCALE = 1.6  # pixels per point: the drawing is sized for a phone's page


def write(
    place: str | os.PathLike[str],
    *,
    tokens: Sequence[float],
    rates: Sequence[float],
    turns: Sequence[tuple[str, float]],
) -> str:
    """Draws and writes; returns where.

    Args:
      place: the file, with the suffix .svg.
      tokens: before each of some updates, rising.
      rates: of these updates.
      turns: (name of a phase, tokens where it begins).

    Raises:
      ValueError: another suffix.
    """
    target = files.path(place)
    if target.suffix != ".svg":
        raise ValueError(f"The plot is written as SVG: name a file that ends in .svg, got {place}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(target, _standalone(_plot(tokens, rates, turns).svg))
    return str(target)


def _plot(
    tokens: Sequence[float], rates: Sequence[float], turns: Sequence[tuple[str, float]]
) -> figure.Plot:
    fig, axis = figure.new()
    axis.plot(tokens, rates, linewidth=2, **figure.series(0))
    for name, at in turns:
        axis.axvline(at, color=figure.GRID, linewidth=1)
        axis.annotate(
            name,
            (at, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(3, 3),
            textcoords="offset points",
            rotation=30,
            ha="left",
            va="bottom",
            fontsize=9,
            color=figure.MUTED,
        )
    axis.set_ylim(bottom=0)
    axis.set_ylabel("learning rate", fontsize=10)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    figure.token_axis(axis)
    return figure.finish(
        fig,
        name="schedule",
        alt=f"Line: learning rate over tokens, from {rates[0]:.3g} to {rates[-1]:.3g}, at most "
        f"{max(rates):.3g}.",
        caption="",
    )


def _standalone(svg: str) -> str:
    """The page's markup as a file: with namespaces, a size, a ground and colours of its own."""
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert box, "figure.finish keeps the viewBox"
    width, height = (_SCALE * float(side) for side in box.groups())
    opening = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width:.0f}" height="{height:.0f}" font-family="sans-serif" '
    )
    svg = svg.replace("<svg ", opening, 1)
    ground = f'<rect width="100%" height="100%" fill="{_COLORS["surface"]}"/>'
    svg = svg.replace(">", f">{ground}", 1)
    return re.sub(r"var\(--(\w+)\)", lambda found: _COLORS[found[1]], svg)
