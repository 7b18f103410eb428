# SPDX-License-Identifier: Apache-2.0
"""The verb `launch` through the command line: what it refuses before a slice is paid for."""

import dataclasses

import pytest

from midjax import __main__ as cli
from midjax import config, launch_verb
from midjax.hardware import flags
from midjax.launch import pods, spec
from midjax.model import architecture
from midjax.plan import recipe as plan_lib
from midjax.train import evaluation

RECIPE = "gin/recipes/launch_v5e.gin"


def wide(**mesh: int) -> str:
    """A batch that all slices divide, on a mesh."""
    lines = ["Data.batch_rows=256", *(f"Mesh.{axis}={size}" for axis, size in mesh.items())]
    return f"--gin.Launch.overrides={tuple(lines)!r}"


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
    assert "--gin.Start.run=gs://my-bucket/runs/demo/pretrain --gin.Data.batch_rows=256" in script
    assert cli.main(launch_line(tmp_path, "delete", "--dry-run")) == 0
    assert "queued-resources delete midtrain-v5e" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--gin.Launch.slice=v5e-24"], "Nearest: v5e-8, v5e-16, v5e-32"),
        (["--gin.Launch.compiler_flags=--xla_a=1 --xla_a=2"], "given twice, as 1 and as 2"),
        (["--gin.Launch.recipe=gin/recipes/nothing.gin"], "there is no"),
        (["--gin.Launch.overrides=('Mesh.fsdpp=4',)"], "fsdpp"),  # as `train` would refuse it
        (["--gin.Launch.slice=v5e-1"], "The mesh (data -1 x fsdp 4 x tensor 1) does not fit 1 dev"),
        (["--gin.Launch.overrides=('Mesh.data=1', 'Mesh.fsdp=16')"], "axis 'batch' of size 4 does"),
        (
            ["--gin.Launch.slice=2xv5e-16", wide(data=1, fsdp=-1)],
            "Mesh.data is 1, and there are 2 slices",
        ),
        (["--gin.Launch.slice=v5e-256", wide(data=1, fsdp=-1)], "'embed' of size 128 does not"),
        ([wide(data=-1, fsdp=1, context=3)], "does not fit 16 devices"),
        ([wide(data=-1, fsdp=4)], "prose/Source.tokens = 'build/demo/tokens/prose'"),
        ([wide(data=-1, fsdp=4)], 'such as "prose/Source.tokens={bucket}/FOLDER"'),
        ([wide(data=-1, fsdp=4)], "Start.run = 'build/demo/pretrain'"),
        (["--gin.Launch.mixture_of_experts=True"], "Set Launch.mixture_of_experts = False"),
        (["resume"], "unknown arguments ['resume']; launch takes"),
        (["--spot"], "unknown arguments ['--spot']"),
    ],
)
def test_a_launch_that_cannot_be_is_told_before_anything_is_asked_for(tmp_path, capsys, more, said):
    assert cli.main(launch_line(tmp_path, "--dry-run", *more)) == 2
    found = capsys.readouterr()
    assert said in found.err and not found.out and not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [*pods.PODS, "v5e-4", "2xv5p-128"])
def test_the_recipe_fits_every_slice_that_has_a_file(size):
    """A row of every batch for each chip, copies of the model within slices, nothing on disks."""
    root = config.load("launch", [RECIPE], [f"Launch.slice={size}"])
    recipe = launch_verb.read(root)
    launch_verb.check_mesh(root, recipe)
    assert recipe.data.batch_rows % root.tpu.chips == 0
    assert launch_verb.read_places(root, recipe) == [
        "gs://my-bucket/runs/demo/pretrain",
        *(f"gs://my-bucket/runs/demo/tokens/{name}" for name in ("code", "maths", "prose")),
    ]


def test_a_mixture_of_experts_has_the_flags_that_a_plan_gives_it():
    """Of v6e they differ, and a recipe that goes with the wrong ones is refused."""
    root = config.load("launch", [RECIPE], ["Launch.slice=v6e-16"])
    recipe = launch_verb.read(root)
    launch_verb.check_flags(root, recipe)
    experts = architecture.Experts(count=4, per_token=2, ffn_dim=64)
    mixed = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, experts=experts))
    with pytest.raises(spec.LaunchError, match="mixture_of_experts = True"):
        launch_verb.check_flags(root, mixed)
    root = dataclasses.replace(root, mixture_of_experts=True)
    launch_verb.check_flags(root, mixed)
    planned = plan_lib.Plan(train=mixed, slices=("v6e-16",)).options(root.tpu, mixed)
    assert flags.as_compiler_options(root.flags) == planned


def test_what_evaluations_read_must_be_in_a_bucket_too():
    root = config.load("launch", [RECIPE], [])
    given = {"name": "x", "every_steps": 9, "domains": ("prose",), "tokenizer": "package:a/b"}
    asked = evaluation.Evaluation(tokens="build/heldout", **given)
    recipe = dataclasses.replace(launch_verb.read(root), evaluations=(asked,))
    with pytest.raises(spec.LaunchError, match="Evaluation.tokens = 'build/heldout'"):
        launch_verb.read_places(root, recipe)
    there = dataclasses.replace(asked, tokens="gs://b/heldout")
    recipe = dataclasses.replace(recipe, evaluations=(there,))
    assert "gs://b/heldout" in launch_verb.read_places(root, recipe)


@pytest.mark.parametrize("more", [[], ["Launch.bucket=gs://b-2/x"]])
def test_train_takes_what_launch_gives_it(tmp_path, more):
    """The line that the machines run, read as `midjax train` reads it."""
    root = config.load("launch", [RECIPE], more)
    verb, *arguments = root.arguments
    gin_files, bindings, rest = config.split_argv(arguments)
    assert verb == "train" and not rest
    assert f"Train.run_dir={root.place}/run" in bindings
    there = [line for line in bindings if not line.startswith("Train.run_dir=")]
    recipe = config.load(verb, gin_files, [*there, f"Train.run_dir={tmp_path}"])
    plain = config.load(verb, gin_files, [f"Train.run_dir={tmp_path}"])
    changed = {path for path, *_ in config.changes(config.to_json(plain), config.to_json(recipe))}
    assert changed == {
        *(f"data.sources.{name}.tokens" for name in ("prose", "code", "maths")),
        *("start.run", "data.batch_rows", "mesh.data", "mesh.fsdp"),
    }
    assert recipe.start.run == f"{root.bucket}/demo/pretrain"


def test_what_only_an_image_can_have_is_said_and_not_refused(tmp_path, capsys):
    more = ["--gin.Launch.image=eu.pkg.dev/p/r/i:1", wide(data=-1, fsdp=4)]
    assert cli.main(launch_line(tmp_path, "--dry-run", *more)) == 0
    said = capsys.readouterr().out
    assert "# not checked: Start.run = 'build/demo/pretrain' must be in eu.pkg.dev/p/r/i:1" in said
    assert "gcloud storage ls" not in said


def test_what_the_run_reads_is_asked_for_first(tmp_path, capsys):
    assert cli.main(launch_line(tmp_path, "--dry-run")) == 0
    lines = capsys.readouterr().out.splitlines()
    asked = lines.index("gcloud storage ls gs://my-bucket/runs/demo/pretrain")
    (created,) = [i for i, line in enumerate(lines) if "queued-resources create" in line]
    assert asked < created
