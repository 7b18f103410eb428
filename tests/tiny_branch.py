# SPDX-License-Identifier: Apache-2.0
"""A tiny trunk and jobs that branch off it."""

import json
import pathlib

import tiny_run as tiny

from midjax import checkpoint, config
from midjax.branch import recipe
from midjax.train import loop

KEEP = checkpoint.Keep(every_steps=2, last=9, forever_every_steps=None)


def trunk(folder: pathlib.Path):
    """folder/trunk: 3 updates of warm-up and 5 stable ones, saved at 2, 4, 6, 8."""
    tiny.write_tokens(folder / "tokens")
    root = tiny.train(folder, "trunk", checkpoint=KEEP)
    config.save(root, root.run_dir)
    loop.run(root)


def train(folder: pathlib.Path, **kwargs):
    """What all jobs share: an anneal of the trunk that goes on in its data, 3 updates long."""
    start = tiny.begin("anneal", run=str(folder / "trunk"), keep=("data", "rng"))
    given = {
        "start": start,
        "steps": 3,
        "schedule": tiny.wsd(peak_lr="checkpoint", warmup_steps=0, decay_steps=3),
        "checkpoint": KEEP,
    }
    return tiny.train(folder, "jobs", **(given | kwargs))


def job(folder: pathlib.Path, *, train_kwargs=None, **kwargs) -> recipe.Job:
    return recipe.Job(train=train(folder, **(train_kwargs or {})), **kwargs)


def events(run_dir, name: str) -> list[dict]:
    lines = (pathlib.Path(run_dir) / "events.jsonl").open()
    return [e for e in map(json.loads, lines) if e["event"] == name]
