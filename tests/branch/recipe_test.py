# SPDX-License-Identifier: Apache-2.0
"""Lists of jobs that cannot be meant, and how gin's scopes make one job differ."""

import pytest
import tiny_branch
import tiny_run as tiny

from midjax import config
from midjax.branch import recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decay_tokens": 5, "decay_steps": 5}, "give decay_tokens or decay_steps"),
        ({"decay_steps": 0}, "1 or more"),
        ({"from_tokens": 5, "start": {"step": 4}}, "both from_tokens = 5 and Start.step = 4"),
        ({"start": {"kind": "weights", "keep": ()}}, "goes on from a trunk with its moments"),
        ({"start": {"kind": "fresh", "run": None, "keep": ()}}, "name the trunk in Start.run"),
    ],
)
def test_bad_jobs(tmp_path, change, message):
    start = {"kind": "anneal", "run": "x", "keep": ("data", "rng")} | change.pop("start", {})
    with pytest.raises(ValueError, match=message):
        tiny_branch.job(tmp_path, train_kwargs={"start": tiny.begin(**start)}, **change)


def test_bad_lists(tmp_path):
    one = tiny_branch.job(tmp_path)
    with pytest.raises(ValueError, match="Give at least one"):
        recipe.Branch(jobs={})
    for name in ("a/b", "", "..", "-x"):
        with pytest.raises(ValueError, match="cannot be names of folders"):
            recipe.Branch(jobs={name: one})
    elsewhere = tiny_branch.job(tmp_path, train_kwargs={"run_dir": "other"})
    with pytest.raises(ValueError, match=r"Train.run_dir must be the same for all jobs.*other"):
        recipe.Branch(jobs={"a": one, "b": elsewhere})
    another = tiny.begin("anneal", run="another")
    with pytest.raises(ValueError, match=r"Start.run must be the same for all jobs.*another"):
        recipe.Branch(
            jobs={"a": one, "b": tiny_branch.job(tmp_path, train_kwargs={"start": another})}
        )


def test_a_scope_changes_one_job(tmp_path):
    """The list of demo_branch.gin, with two more fields of one job."""
    gin_file = tmp_path / "more.gin"
    gin_file.write_text(
        'include "recipes/demo_branch.gin"\n'
        "short/Start.step = 320\n"
        "short/AdamW.weight_decay = 0.0\n"
    )
    plain = config.load("branch", ["recipes/demo_branch.gin"])
    found = config.load("branch", [str(gin_file)])
    changed = config.changes(config.to_json(plain), config.to_json(found))
    assert changed == [
        ("jobs.short.train.optimizer.weight_decay", 0.1, 0.0),
        ("jobs.short.train.start.step", None, 320),
    ]
    assert found.output == "build/demo/branches" and found.trunk == "build/demo/pretrain"
