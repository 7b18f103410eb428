# SPDX-License-Identifier: Apache-2.0
"""Verbs through the command line, on a tiny run."""

import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import tiny_run as tiny

import midjax
from midjax import __main__ as cli
from midjax import checkpoint, config, verbs
from midjax.model import architecture
from midjax.train import recipe as recipe_lib


@pytest.fixture
def recipe(tmp_path):
    """A saved recipe of a tiny run, as a gin file."""
    tiny.write_tokens(tmp_path / "tokens")
    config.save(tiny.train(tmp_path, steps=4), tmp_path / "recipe")
    return ["train", f"--gin_file={tmp_path / 'recipe' / 'config.gin'}"]


def test_a_recipe_that_cannot_run_leaves_no_run_behind(tmp_path, recipe, capsys):
    assert cli.main([*recipe, "--gin.Start.kind=anneal", f"--gin.Start.run={tmp_path}/no"]) == 2
    assert "holds no finished checkpoint" in capsys.readouterr().err
    assert cli.main([*recipe, "--gin.Train.train_tokens=99_999_999"]) == 2
    assert "epochs" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_show_runs_nothing(tmp_path, recipe, capsys):
    assert cli.main(["show", *recipe, "--gin.Train.seed=7"]) == 0
    assert "seed" in capsys.readouterr().out and not (tmp_path / "run").exists()


def test_show_mixture_touches_no_device(recipe):
    """JAX is told to use a platform that does not exist, and would fail if it were asked."""
    done = subprocess.run(
        [sys.executable, "-m", "midjax", "show", "mixture", recipe[1]],
        env=os.environ | {"JAX_PLATFORMS": "none"},
        cwd=pathlib.Path(midjax.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "s0: from 0 to 512 tokens" in done.stdout and done.stdout.split()[-2:] == ["512", "-"]


def test_show_schedule_prints_and_plots_and_needs_no_data(tmp_path, recipe, capsys):
    """The tiny recipe: 3 updates of warm-up to 0.01; then an anneal of what it left."""
    shutil.rmtree(tmp_path / "tokens")
    assert cli.main(["show", "schedule", *recipe[1:]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["0", "0", "0", "0.000000e+00", "warm-up:", "linear"]
    assert lines[4].split() == ["3", "384", "384", "1.000000e-02", "stable:", "hold"]
    assert lines[-1] == f"plot: {tmp_path}/run/schedule.svg"
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["schedule.svg"]
    missing = ["--gin.Start.kind=anneal", f"--gin.Start.run={tmp_path}/no"]
    assert cli.main(["show", "schedule", *recipe[1:], *missing]) == 2
    assert "holds no finished checkpoint" in capsys.readouterr().err


def test_show_schedule_reads_the_rate_in_force_from_the_checkpoint(tmp_path, recipe, capsys):
    assert cli.main(recipe) == 0
    anneal = [
        "--gin.Start.kind=anneal", f"--gin.Start.run={tmp_path}/run",
        f"--gin.Train.run_dir={tmp_path}/anneal", "--gin.Schedule.peak_lr=checkpoint",
        "--gin.Schedule.warmup_steps=0", "--gin.Schedule.decay_steps=4",
    ]  # fmt: skip
    capsys.readouterr()
    assert cli.main(["show", "schedule", *recipe[1:], *anneal]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:-1]]
    assert [row[3] for row in rows] == [f"{0.0025 * left:.6e}" for left in (4, 3, 2, 1, 0)]


def test_resuming_with_another_recipe_is_refused_but_another_mesh_is_not(tmp_path, recipe, capsys):
    assert cli.main(recipe) == 0
    assert cli.main([*recipe, "--gin.AdamW.b2=0.99"]) == 2
    assert "optimizer.b2: 0.95 -> 0.99" in capsys.readouterr().err
    assert cli.main([*recipe, "--gin.Train.microbatches=2"]) == 0
    assert "changed since this run began: microbatches: 1 -> 2" in capsys.readouterr().out
    assert checkpoint.steps(str(tmp_path / "run")) == [4]


def test_a_run_that_diverges_ends_with_exit_code_4(tmp_path, recipe):
    """A z-loss that is infinite in float32: no gradient is finite."""
    done = subprocess.run(
        [sys.executable, "-m", "midjax", *recipe, "--gin.Loss.z_loss_weight=1e39"],
        cwd=pathlib.Path(midjax.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4, done.stderr
    assert "midjax train: Steps 1 to 3: 3 updates in a row were skipped" in done.stderr
    assert "Last good checkpoint: none, as none was saved before them." in done.stderr
    assert not checkpoint.steps(str(tmp_path / "run"))


def test_a_moved_run_resumes_and_is_read(tmp_path, recipe):
    assert cli.main(recipe) == 0
    (tmp_path / "run").rename(tmp_path / "moved")
    assert cli.main([*recipe, f"--gin.Train.run_dir={tmp_path}/moved"]) == 0
    model, step, facts = verbs.checkpoint_of(str(tmp_path / "moved"), None)
    assert model == tiny.model() and step == 4 and facts["manifest"]["adam_count"] == 4
    with pytest.raises(
        checkpoint.CheckpointError, match=r"holds the checkpoints \[4\], asked for 3"
    ):
        verbs.checkpoint_of(str(tmp_path / "moved"), 3)


def test_a_run_that_trained_in_8_bits_is_read_without(monkeypatch):
    model = tiny.model(quantization=architecture.Quantization(dtype="int8"))
    manifest = {"model": dataclasses.asdict(model)}
    monkeypatch.setattr(checkpoint, "steps", lambda run: [4])
    monkeypatch.setattr(checkpoint, "read_facts", lambda run, step: {"manifest": manifest})
    assert verbs.checkpoint_of("run", None)[0] == tiny.model()


def test_config_json_is_what_was_run(tmp_path, recipe):
    assert cli.main(recipe) == 0
    assert config.load_run(str(tmp_path / "run"), "train") == tiny.train(tmp_path, steps=4)
    assert isinstance(config.load_run(str(tmp_path / "run"), "train"), recipe_lib.Train)
    assert pathlib.Path(tmp_path / "run" / "config.gin").is_file()


def launch_line(tmp_path, *more: str) -> list[str]:
    root = config.gin_root().parent
    return [
        *("launch", "--gin_file=gin/recipes/launch_v5e.gin", f"--gin.Launch.code={root}"),
        *(f"--gin.Launch.folder={tmp_path}", *more),
    ]


def test_launch_prints_where_gcloud_is_absent(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(launch_line(tmp_path)) == 0
    text = capsys.readouterr().out
    assert text.startswith("# nothing is run: gcloud is not installed\n")
    assert "gcloud compute tpus queued-resources create midtrain-v5e" in text
    script = (tmp_path / "midtrain-v5e/worker.sh").read_text()
    assert "--gin_file=gin/recipes/demo_midtrain.gin --gin.Mesh.data=1" in script
    assert cli.main(launch_line(tmp_path, "delete", "--dry-run")) == 0
    assert "queued-resources delete midtrain-v5e" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--gin.Launch.slice=v5e-24"], "Nearest: v5e-8, v5e-16, v5e-32"),
        (["--gin.Launch.compiler_flags=--xla_a=1 --xla_a=2"], "given twice, as 1 and as 2"),
        (["--gin.Launch.recipe=gin/recipes/nothing.gin"], "there is no"),
        (["--gin.Launch.overrides=('Mesh.fsdpp=4',)"], "fsdpp"),  # as `train` would refuse it
        (["resume"], "unknown arguments ['resume']; launch takes"),
        (["--spot"], "unknown arguments ['--spot']"),
    ],
)
def test_a_launch_that_cannot_be_is_told_before_anything_is_asked_for(tmp_path, capsys, more, said):
    assert cli.main(launch_line(tmp_path, "--dry-run", *more)) == 2
    found = capsys.readouterr()
    assert said in found.err and not found.out and not list(tmp_path.iterdir())
