# SPDX-License-Identifier: Apache-2.0
"""The worker's answers are lines of JSON, whatever else is printed."""

import json
import os
import pathlib
import subprocess
import sys

import plan_recipes

import midjax
from midjax.plan import program, worker
from midjax.strict import fields


def test_answers_are_the_only_lines_of_its_output(tmp_path):
    plan_recipes.need_compiler()
    meshes = [{"data": 1, "fsdp": 4, "tensor": 1}, {"data": 1, "fsdp": 2, "tensor": 1}]
    requests = [
        {"place": meshes, "slice": "v5e-4"},
        {
            "config": fields.to_json(plan_recipes.train(rows=6)),
            "slice": "v5e-4",
            "rows": 6,
            "options": {},
            "entry": str(tmp_path / "entry"),
        },
    ]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "PYTHONPATH": str(pathlib.Path(midjax.__file__).parent.parent),
    }
    done = subprocess.run(
        [sys.executable, "-m", "midjax.plan.worker"],
        input="".join(json.dumps(request) + "\n" for request in requests),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    placed, refused = (json.loads(line) for line in done.stdout.splitlines())
    assert placed == {"outcome": "placed", "fits": [True, False]}
    assert refused["outcome"] == "refused" and "divide" in refused["refusal"]["said"]
    assert not (tmp_path / "entry").exists()


def test_a_slice_that_libtpu_does_not_describe_has_no_meshes(monkeypatch):
    def refuse(meshes, slice_):
        raise ValueError("libtpu describes no topology")

    monkeypatch.setattr(program, "placeable", refuse)
    answer = worker._answer({"place": [{"data": 4}, {"fsdp": 4}], "slice": "v5e-4"})
    assert answer == {"outcome": "placed", "fits": [False, False]}
