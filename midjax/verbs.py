# SPDX-License-Identifier: Apache-2.0
"""What each verb of `midjax` does with its arguments. Heavy imports happen inside a verb."""

import dataclasses
from collections.abc import Callable
from typing import Any


def load(verb: str, arguments: list[str]) -> Any:
    """The root of a verb that takes nothing but a recipe."""
    from midjax import config

    gin_files, bindings, rest = config.split_argv(arguments)
    if rest:
        raise ValueError(
            f"unknown arguments {rest}; a verb takes --gin_file=FILE and --gin.Class.field=VALUE"
        )
    return config.load(verb, gin_files, bindings)


def tokenize(arguments: list[str]) -> None:
    root = load("tokenize", arguments)
    from midjax import config
    from midjax.batches import tokenize

    tokenize.run(root)
    config.save(root, root.output)  # last: of a run that was refused nothing is left


def import_(arguments: list[str]) -> None:
    root = load("import", arguments)
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

    step = chosen(run_dir, step)
    facts = checkpoint.read_facts(run_dir, step)
    model = config.from_plain(architecture.TransformerConfig, facts["manifest"]["model"])
    return dataclasses.replace(model, quantization=None), step, facts


def chosen(run_dir: str, step: int | None) -> int:
    """The step asked for, which must be there, or the newest."""
    from midjax import checkpoint

    found = checkpoint.steps(run_dir)
    if not found or (step is not None and step not in found):
        raise checkpoint.CheckpointError(
            f"{run_dir} holds the checkpoints {found}, asked for "
            f"{'the newest' if step is None else step}. Train it first."
        )
    return found[-1] if step is None else step


def params_of(model: Any, facts: dict[str, Any], run_dir: str, item: str, mesh: Any) -> Any:
    """The parameters of a run's checkpoint, or their average ("ema"). Moments are not read."""
    import jax
    import jax.numpy as jnp

    from midjax import checkpoint
    from midjax.model import sharding, transformer

    step = facts["step"]
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
    root = load("average", arguments)
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
    from midjax import against_verb
    from midjax.evals import pairing

    arguments, given = against_verb.split(arguments)
    root = load("eval", arguments)
    parent = against_verb.open_parent(given) if given else None  # before anything is measured
    result, where = _measured(root, None, parent)
    if parent:
        now = pairing.of(result, where)
        against_verb.run(root, now, parent, lambda *asked: _measured(*asked)[0])


def _measured(root: Any, stem: str | None, parent: Any = None) -> tuple[dict[str, Any], str]:
    """The result of an evaluation, and its file; `parent` is what it is going to be compared with,
    see `against_verb.Parent`."""
    from midjax import against_verb, log, opening
    from midjax.evals import run, table
    from midjax.model import sharding

    keys = ("run", "folder", "step", "weights", "compute_dtype")
    opened = opening.model(**{key: getattr(root, key) for key in keys})
    mesh = sharding.make(root.mesh)
    # Before the parameters are read.
    inputs = run.check(root, opened.model, mesh, tokenizer_hash=opened.tokenizer_hash)
    if parent:
        against_verb.check(root, run.expected(root, opened.model, inputs), parent)
    params = opened.params(mesh)
    result = run.run(root, opened.model, params, opened.step, mesh, inputs=inputs)
    where = run.write(result, stem=stem)
    for line in table.lines(result):
        log.say(line)
    log.say(f"written to {where}")
    return result, where


def export(arguments: list[str]) -> None:
    root = load("export", arguments)
    from midjax import export, files, lineage, log
    from midjax.model import sharding

    model, step, facts = checkpoint_of(root.run, root.step)
    root = dataclasses.replace(root, step=step)
    stages = lineage.of(root.run, step)
    known = {"said": _said(stages), "tokenizer_hash": facts["manifest"]["tokenizer_hash"]}
    export.check(root, model, **known)  # before the parameters are read
    params = params_of(model, facts, root.run, root.weights, sharding.make(root.mesh))
    evals = {
        place.stem: files.read_json(place)
        for place in sorted((files.path(root.run) / "eval").glob("*.json"))
        if not place.name.endswith(".against.json")
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
    root = load("report", arguments)
    from midjax.report import page

    page.run(root)
    print(page.terminal_table(root))
