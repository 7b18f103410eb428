# SPDX-License-Identifier: Apache-2.0
"""A schedule before the run: learning rate over tokens, as one SVG file to look at."""

import os
from collections.abc import Sequence

from midjax.report import figure


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
    return figure.write(place, _plot(tokens, rates, turns))


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
