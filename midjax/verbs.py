# SPDX-License-Identifier: Apache-2.0
"""What each verb of `midjax` does with its arguments. Heavy imports happen inside a verb."""

import argparse
import dataclasses
import sys
from collections.abc import Callable
from typing import Any


def _load(verb: str, arguments: list[str]) -> Any:
    from midjax import config

    gin_files, bindings, rest = config.split_argv(arguments)
    if rest:
        raise ValueError(
            f"unknown arguments {rest}; a verb takes --gin_file=FILE and --gin.Class.field=VALUE"
        )
    return config.load(verb, gin_files, bindings)


def show(arguments: list[str]) -> None:
    from midjax import config

    if arguments[:1] == ["mixture"]:
        _show_mixture(arguments[1:])
        return
    if arguments[:1] == ["schedule"]:
        _show_schedule(arguments[1:])
        return
    if arguments[:1] == ["lineage"]:
        _show_lineage(arguments[1:])
        return
    if not arguments or arguments[0] not in config.ROOTS:
        known = ", ".join([*config.ROOTS, "mixture", "schedule", "lineage"])
        raise ValueError(f"show needs one of {known}, and its --gin_file=RECIPE")
    print(config.show(_load(arguments[0], arguments[1:])))


def _show_mixture(arguments: list[str]) -> None:
    root = _load("train", arguments)
    _guard_train(root)
    from midjax.mixture import plan
    from midjax.train import prepare

    mixed = prepare.mix(root)
    for sentence in root.data.mixture.unnormalised():
        print(sentence)
    if mixed.position.changed:
        print(f"changed: a new stage of {root.run_dir} from step {mixed.first_step + 1} on")
    print(plan.table(mixed.loader.order))


def _show_schedule(arguments: list[str]) -> None:
    """The learning rates of a `train` recipe: a table, and a plot in its run directory."""
    root = _load("train", arguments)
    from midjax.report import schedule_plot
    from midjax.train import prepare, timeline
    from midjax.train import start as start_lib
    from midjax.train.schedules import table

    origin = start_lib.choose(root.start, root.run_dir)
    line = timeline.of(root.data, root.train_tokens, origin)
    curve = prepare.schedule(root, origin, line)
    print(table.text(table.rows(curve, line.first_count)))
    steps = table.sampled(curve)
    where = schedule_plot.write(
        f"{root.run_dir}/schedule.svg",
        tokens=[float(curve.clock.tokens(step)) for step in steps],
        rates=curve.lrs(steps).tolist(),
        turns=[(span.name, float(span.first_tokens)) for span in curve.spans],
    )
    print(f"plot: {where}")


def _show_lineage(arguments: list[str]) -> None:
    """The stages of a run's checkpoint, since pretraining."""
    given = dict(argument.partition("=")[::2] for argument in arguments)
    step = given.get("--step")
    if not given.get("--run") or given.keys() - {"--run", "--step"} or not (step or "0").isdigit():
        raise ValueError(
            f"show lineage takes --run=DIR and, for another than the newest checkpoint, --step=N; "
            f"got {arguments}"
        )
    from midjax import lineage

    at = _chosen(given["--run"], None if step is None else int(step))
    print(lineage.text(lineage.of(given["--run"], at)))


def tokenize(arguments: list[str]) -> None:
    root = _load("tokenize", arguments)
    from midjax import config
    from midjax.batches import tokenize

    tokenize.run(root)
    config.save(root, root.output)  # last: of a run that was refused nothing is left


# What a run that resumes may change: where and how it computes, never what.
LOOSE_WHEN_RESUMING = (
    "run_dir",
    "mesh",
    "state_sharding",
    "state_memory",
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
    "ema",
)

# What a job may change that has begun already: another mixture or batch is another job.
LOOSE_IN_A_LIST = tuple(
    name
    for name in LOOSE_WHEN_RESUMING
    if name not in ("data.mixture", "data.batch_rows", "batch_lr_rule")
)


def _guard_train(root: Any) -> Any:
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
    from midjax.train import goodput

    # A process that was started for this run was for it from its start on, imports and all.
    alone = sys.argv[1:] == ["train", *arguments]
    watch = goodput.Stopwatch(goodput.process_age_seconds() if alone else 0.0)
    _train(_load("train", arguments), watch)


def _train(root: Any, watch: Any) -> None:
    extension = _guard_train(root)
    from midjax import config, log
    from midjax.model import hf_generation
    from midjax.train import extend, loop

    begun = loop.begin(root, watch)  # a recipe that cannot run leaves no run directory behind
    if extension is not None and extension.step != begun.prepared.first_step:
        extension = _guard_train(root)  # the checkpoint that it was checked with is damaged
    if extension is not None:
        extend.record(extension, root.run_dir)
    config.save(root, root.run_dir)
    hf_generation.carry(root.run_dir, run=root.start.run, folder=root.start.huggingface)
    log.say(f"every setting: {root.run_dir}/config.gin")
    loop.go(begun)


def branch(arguments: list[str]) -> None:
    from midjax import config
    from midjax.branch import results, run
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
    root = config.load("branch", gin_files, bindings)
    hands = run.Hands(
        recorded=_recorded,
        guard=lambda one: config.guard_resume(one, one.run_dir, LOOSE_IN_A_LIST),
        save=lambda one: config.save(one, one.run_dir),
        train=lambda one: _train(one, goodput.Stopwatch(0.0)),
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


def import_(arguments: list[str]) -> None:
    root = _load("import", arguments)
    from midjax import config
    from midjax.importing import recipe

    record = recipe.run(root)
    config.save(root, root.output)
    model, _, _ = checkpoint_of(root.output, record["step"])
    config.save_model(model, root.output)


def checkpoint_of(run_dir: str, step: int | None) -> tuple[Any, int, dict[str, Any]]:
    """(model config, step, facts) of a run's checkpoint, the newest for None. Reads JSON only.

    The model is the checkpoint's own, so that a run that was imported is read like any other; but
    never quantized: that is how a run trains, not what its parameters are.
    """
    from midjax import checkpoint, config
    from midjax.model import architecture

    step = _chosen(run_dir, step)
    facts = checkpoint.read_facts(run_dir, step)
    model = config.from_plain(architecture.TransformerConfig, facts["manifest"]["model"])
    return dataclasses.replace(model, quantization=None), step, facts


def _chosen(run_dir: str, step: int | None) -> int:
    """The step asked for, which must be there, or the newest."""
    from midjax import checkpoint

    found = checkpoint.steps(run_dir)
    if not found or (step is not None and step not in found):
        raise checkpoint.CheckpointError(
            f"{run_dir} holds the checkpoints {found}, asked for "
            f"{'the newest' if step is None else step}. Train it first."
        )
    return found[-1] if step is None else step


def _params(model: Any, facts: dict[str, Any], root: Any, mesh: Any) -> Any:
    """The parameters that `root` names, of a checkpoint, or their average. Moments are not read."""
    import jax
    import jax.numpy as jnp

    from midjax import checkpoint
    from midjax.model import sharding, transformer

    run_dir, step, item = root.run, facts["step"], root.weights
    if not any(name.startswith(f"{item}/") for name in facts["manifest"]["arrays"]):
        raise checkpoint.CheckpointError(
            f"{run_dir}, step {step}, holds no average of its parameters, for which weights = "
            f"{item!r} asks. Only a run with Train.ema keeps one; take weights = 'params'."
        )
    abstract = transformer.abstract(model)
    shardings = sharding.tree(mesh, transformer.logical_axes(model), abstract)

    def target(x: Any, s: Any) -> Any:
        dtype = jnp.float32 if item == "ema" else x.dtype
        return jax.ShapeDtypeStruct(x.shape, dtype, sharding=s)

    targets = {item: jax.tree.map(target, abstract, shardings)}
    found = checkpoint.restore(run_dir, step, targets)[item]
    return jax.tree.map(lambda x, like: x.astype(like.dtype), found, abstract)


def average(arguments: list[str]) -> None:
    root = _load("average", arguments)
    from midjax import config
    from midjax.average import recipe

    model = recipe.run(root, find=checkpoint_of, scorer=_scorer)
    config.save(root, root.output)
    config.save_model(model, root.output)


def _scorer(root: Any, model: Any, mesh: Any, tokenizer_hash: str | None) -> Callable[[Any], Any]:
    """Parameters -> bits per byte of each domain of a greedy soup, as `midjax eval` computes it."""
    from midjax.evals import run

    shared = ("tokens", "domains", "row_tokens", "batch_rows", "tokenizer")
    settings = {name: getattr(root.method, name) for name in shared}
    config = run.Eval(
        name="average",
        run=root.method.runs[0],
        step=None,
        mesh=root.mesh,
        long=None,
        samples=None,
        **settings,
    )
    run.check(config, model, mesh, tokenizer_hash=tokenizer_hash)

    def score(params: Any) -> dict[str, float | None]:
        found = run.run(config, model, params, 0, mesh, tokenizer_hash=tokenizer_hash)
        return {name: domain["bits_per_byte"] for name, domain in found["domains"].items()}

    return score


def evaluate(arguments: list[str]) -> None:
    root = _load("eval", arguments)
    from midjax import log
    from midjax.evals import run
    from midjax.model import sharding

    model, step, facts = checkpoint_of(root.run, root.step)
    tokenizer_hash = facts["manifest"]["tokenizer_hash"]
    mesh = sharding.make(root.mesh)
    run.check(root, model, mesh, tokenizer_hash=tokenizer_hash)  # before the parameters are read
    params = _params(model, facts, root, mesh)
    result = run.run(root, model, params, step, mesh, tokenizer_hash=tokenizer_hash)
    where = run.write(result)
    for name, domain in result["domains"].items():
        bits = domain["bits_per_byte"]
        log.say(f"  {name}: {'not finite' if bits is None else f'{bits:.4f}'} bits per byte")
    log.say(f"written to {where}")


def export(arguments: list[str]) -> None:
    root = _load("export", arguments)
    from midjax import export, files, lineage, log
    from midjax.model import sharding

    model, step, facts = checkpoint_of(root.run, root.step)
    root = dataclasses.replace(root, step=step)
    stages = lineage.of(root.run, step)
    known = {"said": _said(stages), "tokenizer_hash": facts["manifest"]["tokenizer_hash"]}
    export.check(root, model, **known)  # before the parameters are read
    params = _params(model, facts, root, sharding.make(root.mesh))
    evals = {
        place.stem: files.read_json(place)
        for place in sorted((files.path(root.run) / "eval").glob("*.json"))
    }
    card = {
        "stages, oldest first": lineage.brief(stages),
        "evals": {
            name: found
            for name, found in evals.items()
            if found["step"] == step and found.get("weights", "params") == root.weights
        },
    }
    result = export.run(root, model, params, card, **known)
    files.write_json(files.path(root.output) / "export.json", dataclasses.asdict(result))
    log.say(
        f"{result.folder}: {result.compared_tensors} tensors read back bit for bit; logits within "
        f"{result.max_difference:.1e} of {result.compared_with}, over {result.compared_tokens} "
        "tokens"
    )
    if result.not_compared:
        log.say(f"  not compared with transformers: {result.not_compared}")
    log.say(f"  token ids and settings for generation: from {result.token_ids_from}")


def _said(stages: list[dict[str, Any]]) -> Any:
    """What the first folder of a run said of generation, as the newest of its runs has it."""
    from midjax import files
    from midjax.model import hf_generation

    for stage in reversed(stages):
        if "run" in stage and (found := hf_generation.kept(stage["run"])):
            return found
        folder = stage.get("Hugging Face folder")
        if folder and (files.path(folder) / hf_generation.CONFIG).exists():
            return hf_generation.read(folder)
    return None


def report(arguments: list[str]) -> None:
    root = _load("report", arguments)
    from midjax.report import page

    page.run(root)
    print(page.terminal_table(root))


def launch(arguments: list[str]) -> None:
    from midjax import config, log
    from midjax.launch import run, runner

    parser = argparse.ArgumentParser(prog="midjax launch", exit_on_error=False, add_help=False)
    parser.add_argument("action", nargs="?", default="create")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--worker", default="0-0")
    gin_files, bindings, rest = config.split_argv(arguments)
    options, unknown = parser.parse_known_args(rest)
    if unknown or options.action not in run.ACTIONS:
        raise ValueError(
            f"unknown arguments {unknown or [options.action]}; launch takes --gin_file=FILE, "
            f"--gin.Launch.field=VALUE, one of {', '.join(run.ACTIONS)}, --dry-run and "
            "--worker=SLICE-WORKER (logs)"
        )
    root = config.load("launch", gin_files, bindings)
    local = runner.Local()
    session = run.Session(root, local)
    if options.action == "create":
        _check_launched(root)
    missing = [program for program in run.programs(root) if not local.has(program)]
    if options.dry_run or missing:
        if missing and not options.dry_run:
            log.say(f"# nothing is run: {', '.join(missing)} is not installed")
        print(session.print_commands(options.action))
    elif options.action == "logs":
        session.logs(options.worker)
    else:
        getattr(session, options.action)()


def _check_launched(root: Any) -> None:
    """The recipe of a launch is read here and now, not first by 64 machines."""
    from midjax import config, files, log

    place = files.path(root.code) / root.recipe
    if not place.is_file():
        if root.image is None:
            raise config.ConfigError(f"Launch.recipe: there is no {place}.")
        log.say(f"# not checked: {root.recipe} is not here; {root.image} must have it")
        return
    # A bucket's folder is for the machines; whether the rest of the recipe holds is known here.
    config.load("train", [str(place)], [x for x in root.overrides if "run_dir=" not in x])
