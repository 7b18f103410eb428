# SPDX-License-Identifier: Apache-2.0
"""A plan as one self-contained HTML page, from what `plan.json` holds."""

import importlib.resources
from collections.abc import Mapping
from typing import Any

import jinja2
import markupsafe

from midjax import files, units
from midjax.report import page, plan_plots

TEMPLATE = "plan.html.j2"


def write(plan: Mapping[str, Any], place: str) -> str:
    """Writes the page; returns where.

    Args:
      plan: as `plan.json` has it.
      place: the HTML file.
    """
    files.write_text(place, render(plan))
    return place


def render(plan: Mapping[str, Any]) -> str:
    """The page."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "bytes": units.human_bytes,
        "human": units.human,
        "duration": units.human_seconds,
        "seconds": lambda x: f"{x:.3g} s",
        "percent": lambda x: f"{100 * x:.1f} %",
        "mesh": lambda sizes: " × ".join(f"{k} {v}" for k, v in sizes.items() if v > 1) or "1",
        "svg": lambda plot: markupsafe.Markup(plot.svg),
    }
    source = importlib.resources.files("midjax.report").joinpath(TEMPLATE).read_text()
    return environment.from_string(source).render(
        style=page.style(),
        plan=plan,
        slices=[_slice(plan, name, index) for index, name in enumerate(plan["slices"])],
        searches=[
            {**search, "plot": plan_plots.front(search, f"front{index}")}
            for index, search in enumerate(plan["searches"])
        ],
    )


def _slice(plan: Mapping[str, Any], name: str, index: int) -> dict[str, Any]:
    about = plan["slices"][name]
    stages = [stage for stage in plan["stages"] if stage["slice"] == name]
    drawn = [
        (f"{stage['name']}, {step['batch_rows']} rows", step)
        for stage in stages
        for step in stage["steps"]
        if step["found"] is not None
    ]
    steps = []
    for number, (label, step) in enumerate(drawn):
        ids = f"{index}x{number}"
        plots = [
            plan_plots.memory(step, f"memory{ids}"),
            plan_plots.timeline(step, about["usable_hbm_bytes"], f"timeline{ids}"),
            plan_plots.roofline(step, about, f"roofline{ids}"),
        ]
        steps.append({"label": label, "step": step, "plots": [p for p in plots if p is not None]})
    return {
        "name": name,
        "about": about,
        "stages": stages,
        "steps": steps,
        "time": plan_plots.time(drawn, f"time{index}") if drawn else None,
    }
