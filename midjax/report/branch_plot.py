# SPDX-License-Identifier: Apache-2.0
"""Decays of one trunk: loss at the end against the length of the decay, as one SVG file."""

import os
from collections.abc import Sequence

from midjax.report import figure


def write(
    place: str | os.PathLike[str], jobs: Sequence[tuple[str, int, float]], *, trunk: str
) -> str:
    """Draws and writes; returns where.

    Args:
      place: the file, with the suffix .svg.
      jobs: (name, tokens of the decay, loss in nats per token) of each, one or more.
      trunk: for the description.

    Raises:
      ValueError: another suffix.
    """
    fig, axis = figure.new()
    tokens, losses = [job[1] for job in jobs], [job[2] for job in jobs]
    axis.plot(tokens, losses, marker="o", markersize=6, color=figure.color(0), linestyle="none")
    for name, at, loss in jobs:
        axis.annotate(
            name,
            (at, loss),
            xytext=(6, 4),
            textcoords="offset points",
            fontsize=9,
            color=figure.MUTED,
        )
    axis.margins(x=0.15, y=0.15)
    axis.set_ylabel("nats per token", fontsize=10)
    figure.token_axis(axis, "tokens of the decay")
    said = "; ".join(f"{name} {loss:.4f} after {at}" for name, at, loss in jobs)
    plot = figure.finish(
        fig,
        name="branches",
        alt=f"Points: training loss at the end of decays of {trunk}, by their tokens. {said}.",
        caption="",
    )
    return figure.write(place, plot)
