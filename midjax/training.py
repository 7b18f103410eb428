# SPDX-License-Identifier: Apache-2.0
"""The verbs `train` and `branch`, and what a run that resumes may change. Heavy imports inside."""

import argparse
import gc
import sys
import uuid
from typing import Any

from midjax import verbs

# What a run that resumes may change: where and how it computes, never what.
LOOSE_WHEN_RESUMING = (
    "run_dir",
    "mesh",
    "state_sharding",
    "state_memory",
    "fsdp_sums",
    "microbatches",
    "checkpoint",
    "compilation_cache",
    "optimizer.clip_norm",
    "model.remat",
    "model.loss_chunk_tokens",
    # What changes in them is a new stage from here on, or is refused: see train/continuity.py.
    "data.mixture",
    "data.sources",
    "data.workers",
    "trackers",
    "device_flops_per_second",
    # Batches are what was asked for from here on; those before stay what they were.
    "data.batch_rows",
    "batch_lr_rule",
    "start.allow_lr_jump",
    # How the run is guarded; what was done stays done.
    "max_consecutive_skips",
    "spikes",
    "rollback",
    "layer_norms_every_steps",
    "noise_scale_every_steps",
    "evaluations",
    "ema",
    "hosts",
)

# What a job may change that has begun already: another mixture or batch is another job.
LOOSE_IN_A_LIST = tuple(
    name
    for name in LOOSE_WHEN_RESUMING
    if name not in ("data.mixture", "data.batch_rows", "batch_lr_rule")
)


def guard(root: Any) -> Any:
    """A run that would resume has the configuration that it began with, but for what is loose.

    Returns:
      The `train.extend.Extension` of a run whose end is moved, else None.
    """
    from midjax import checkpoint, config, log
    from midjax.train import extend, start

    if not checkpoint.steps(root.run_dir):
        return None
    begun = config.read(root.run_dir)["config"] if _has_config(root.run_dir) else None
    longer = begun is not None and extend.asked(begun, config.to_json(root))
    loose = LOOSE_WHEN_RESUMING + (extend.LOOSE if longer else ())
    for line in config.guard_resume(root, root.run_dir, loose):
        log.say(f"changed since this run began: {line}")
    while longer:
        try:
            return extend.check(config.load_run(root.run_dir, "train"), root)
        except checkpoint.DamagedError as error:
            start.set_aside_damaged(error)
    return None


def _has_config(run_dir: str) -> bool:
    from midjax import files

    return (files.path(run_dir) / "config.json").is_file()


def train(arguments: list[str]) -> None:
    # What is made until the run goes stays: to look for garbage in it, again and again, would take
    # a tenth of the start.
    gc.collect()  # of runs before, in this process
    gc.disable()
    try:
        _train(arguments)
    finally:
        gc.unfreeze()
        gc.enable()


def _train(arguments: list[str]) -> None:
    from midjax.train import goodput

    # A process that was started for this run was for it from its start on, imports and all.
    alone = sys.argv[1:] == ["train", *arguments]
    watch = goodput.Stopwatch(goodput.process_age_seconds() if alone else 0.0)
    _run(verbs.load("train", arguments), watch)


def _run(root: Any, watch: Any) -> None:
    from midjax.distributed import group

    with group.running(root.hosts):  # first: it must come before a device is touched
        _run_together(root, watch)


def _run_together(root: Any, watch: Any) -> None:
    from midjax import config, log
    from midjax.distributed import group
    from midjax.model import hf_generation
    from midjax.train import extend, loop

    group.same("The recipe", config.to_json(root))
    extensions: list[Any] = []
    group.first("comparing recipes", lambda: extensions.append(guard(root)))
    begun = loop.begin(root, watch)  # a recipe that cannot run leaves no run directory behind

    def write() -> None:
        (extension,) = extensions
        if extension is not None and extension.step != begun.prepared.first_step:
            extension = guard(root)  # the checkpoint that it was checked with is damaged
        if extension is not None:
            extend.record(extension, root.run_dir)
        config.save(root, root.run_dir)
        hf_generation.carry(root.run_dir, run=root.start.run, folder=root.start.huggingface)
        log.say(f"every setting: {root.run_dir}/config.gin")

    group.first("writing the recipe", write)
    if group.count() > 1:
        _see_one_folder(root.run_dir)
    gc.freeze()  # or the first look for garbage would go through all of it
    gc.enable()
    loop.go(begun)


def _see_one_folder(run_dir: str) -> None:
    """Each process writes its part of a checkpoint: it must be one folder for all of them.

    Raises:
      ValueError: it is not.
    """
    from midjax import files
    from midjax.distributed import group

    place = files.path(run_dir) / ".processes"

    def mark() -> str:
        token = uuid.uuid4().hex
        files.write_text(place, token)
        return token

    token = group.first("marking the run directory", mark)

    def look() -> None:
        if not place.exists() or place.read_text() != token:
            raise ValueError(
                f"Train.run_dir = {run_dir!r} is another folder here than on process 0: a file "
                "that it wrote there is not seen. Put it on a file system that all processes share."
            )

    group.together("looking at the run directory", look)
    group.first("clearing the run directory", place.unlink)


def branch(arguments: list[str]) -> None:
    from midjax import config
    from midjax.branch import results, run
    from midjax.distributed import place
    from midjax.report import branch_plot
    from midjax.train import goodput

    parser = argparse.ArgumentParser(prog="midjax branch", exit_on_error=False, add_help=False)
    parser.add_argument("--list", action="store_true", dest="only_list")
    parser.add_argument("--only", action="append", default=[])
    gin_files, bindings, rest = config.split_argv(arguments)
    options, unknown = parser.parse_known_args(rest)
    if unknown:
        raise ValueError(
            f"unknown arguments {unknown}; branch takes --gin_file=FILE, --gin.Class.field=VALUE, "
            "--list and --only NAME"
        )
    if not options.only_list and place.find() is not None:
        raise ValueError(
            "midjax branch trains in one process, and this is one of several. Give each job to "
            "`midjax train`, with the config.gin in its folder, in all processes."
        )
    root = config.load("branch", gin_files, bindings)
    hands = run.Hands(
        recorded=_recorded,
        guard=lambda one: config.guard_resume(one, one.run_dir, LOOSE_IN_A_LIST),
        save=lambda one: config.save(one, one.run_dir),
        train=lambda one: _run(one, goodput.Stopwatch(0.0)),
        draw=lambda ended: branch_plot.write(
            f"{root.output}/branches.svg",
            [(one.name, one.tokens, loss) for one, loss in ended],
            trunk=root.trunk,
        ),
    )
    config.guard_resume(root, root.output, ("jobs",))
    planned = run.plan(root, hands, options.only)
    if options.only_list:
        print(results.listing(planned, root.trunk))
        return
    config.save(root, root.output)
    run.run(root, planned, hands, options.only)


def _recorded(run_dir: str) -> Any:
    """The recipe of a run of `train`; None where there is none that can be read."""
    from midjax import config, log

    if not _has_config(run_dir) or config.read(run_dir)["verb"] != "train":
        return None
    try:
        return config.load_run(run_dir, "train")
    except config.ConfigError as error:
        log.say(f"{run_dir}/config.json is of another midjax: {error}")
        return None
