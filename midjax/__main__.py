# SPDX-License-Identifier: Apache-2.0
"""`midjax VERB`: one table of verbs. Heavy imports happen inside a verb, never for `--help`."""

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import midjax

USAGE = """\
midjax {version}: mid-training of language models in JAX

  midjax VERB --gin_file=RECIPE [--gin.Class.field=value ...]

{verbs}

  --gin_file=FILE          a recipe; what it includes is read first
  --gin.Class.field=VALUE  overrides one field; strings such as paths need no quotes
  midjax show VERB ...     prints every field that VERB would use, marks what differs from its
                           default, and runs nothing
  midjax show mixture ...  what a training recipe will read, by stage and source, before it runs
  midjax VERB --help       what a verb does, writes and can be repeated with

Recipes: {recipes}
A mistake is one message and exit code 2; MIDJAX_TRACEBACK=1 shows where it was raised.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb. Returns the exit code: 0, or 2 after a mistake of the user's."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(midjax.__version__)
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in VERBS:
        print(f"midjax: no verb {name!r}; there are: {', '.join(VERBS)}", file=sys.stderr)
        return 2
    verb = VERBS[name]
    if "-h" in rest or "--help" in rest:
        print(f"midjax {name}: {verb.summary}\n\n{verb.details.rstrip()}")
        return 0
    try:
        verb.run(rest)
    except (ValueError, OSError) as error:
        # What a user gave, or the machine's disk, does not fit. Other kinds are bugs for sure and
        # keep their traceback; where one of these is a bug, the variable shows its traceback too.
        if os.environ.get("MIDJAX_TRACEBACK"):
            raise
        print(f"midjax {name}: {error}", file=sys.stderr)
        return 2
    return 0


@dataclasses.dataclass(frozen=True)
class Verb:
    """One row of the table."""

    run: Callable[[list[str]], Any]
    summary: str
    details: str


def usage() -> str:
    """The text of `midjax --help`."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items())
    return USAGE.format(version=midjax.__version__, verbs=verbs, recipes=_recipes_place()).rstrip()


def _recipes_place() -> str:
    return "gin/recipes/ (in an installed wheel: midjax/gin/recipes/)"


def _load(verb: str, arguments: list[str]) -> Any:
    from midjax import config

    gin_files, bindings, rest = config.split_argv(arguments)
    if rest:
        raise ValueError(
            f"unknown arguments {rest}; a verb takes --gin_file=FILE and --gin.Class.field=VALUE"
        )
    return config.load(verb, gin_files, bindings)


def _show(arguments: list[str]) -> None:
    from midjax import config

    if arguments[:1] == ["mixture"]:
        _show_mixture(arguments[1:])
        return
    if arguments[:1] == ["schedule"]:
        _show_schedule(arguments[1:])
        return
    if not arguments or arguments[0] not in config.ROOTS:
        known = ", ".join([*config.ROOTS, "mixture", "schedule"])
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
    from midjax.train import prepare
    from midjax.train import start as start_lib
    from midjax.train.schedules import table

    curve, position = prepare.schedule(root, start_lib.choose(root.start, root.run_dir))
    print(table.text(table.rows(curve, position)))
    steps = table.sampled(curve)
    where = schedule_plot.write(
        f"{root.run_dir}/schedule.svg",
        tokens=[float(curve.clock.tokens(step)) for step in steps],
        rates=curve.lrs(steps).tolist(),
        turns=[(span.name, float(span.first_tokens)) for span in curve.spans],
    )
    print(f"plot: {where}")


def _tokenize(arguments: list[str]) -> None:
    root = _load("tokenize", arguments)
    from midjax import config
    from midjax.batches import tokenize

    tokenize.run(root)
    config.save(root, root.output)  # last: of a run that was refused nothing is left


# What a run that resumes may change: where and how it computes, never what.
LOOSE_WHEN_RESUMING = (
    "run_dir",
    "mesh",
    "microbatches",
    "checkpoint",
    "model.remat",
    "model.loss_chunk_tokens",
    # What changes in them is a new stage from here on, or is refused: see train/continuity.py.
    "data.mixture",
    "data.sources",
    "data.workers",
)


def _guard_train(root: Any) -> None:
    """A run that would resume has the configuration that it began with, but for what is loose."""
    from midjax import checkpoint, config, log

    if checkpoint.steps(root.run_dir):
        for line in config.guard_resume(root, root.run_dir, LOOSE_WHEN_RESUMING):
            log.say(f"changed since this run began: {line}")


def _train(arguments: list[str]) -> None:
    root = _load("train", arguments)
    _guard_train(root)
    from midjax import config, log
    from midjax.model import hf_generation
    from midjax.train import loop

    begun = loop.begin(root)  # a recipe that cannot run leaves no run directory behind
    config.save(root, root.run_dir)
    hf_generation.carry(root.run_dir, run=root.start.run, folder=root.start.huggingface)
    log.say(f"every setting: {root.run_dir}/config.gin")
    loop.go(begun)


def _import(arguments: list[str]) -> None:
    root = _load("import", arguments)
    from midjax import config
    from midjax.importing import recipe

    record = recipe.run(root)
    config.save(root, root.output)
    model, _, _ = _found(root.output, record["step"])
    config.save_model(model, root.output)


def _found(run_dir: str, step: int | None) -> tuple[Any, int, dict[str, Any]]:
    """(model config, step, facts) of a run's checkpoint, the newest for None. Reads JSON only.

    The model is the checkpoint's own, so that a run that was imported is read like any other.
    """
    from midjax import checkpoint, config
    from midjax.model import architecture

    found = checkpoint.steps(run_dir)
    if not found or (step is not None and step not in found):
        raise checkpoint.CheckpointError(
            f"{run_dir} holds the checkpoints {found}, asked for "
            f"{'the newest' if step is None else step}. Train it first."
        )
    step = found[-1] if step is None else step
    facts = checkpoint.read_facts(run_dir, step)
    model = config.from_plain(architecture.TransformerConfig, facts["manifest"]["model"])
    return model, step, facts


def _params(model: Any, run_dir: str, step: int, mesh: Any) -> Any:
    """Parameters of a checkpoint on a mesh. Moments are not read."""
    import jax

    from midjax import checkpoint
    from midjax.model import sharding, transformer

    abstract = transformer.abstract(model)
    shardings = sharding.tree(mesh, transformer.logical_axes(model), abstract)
    target = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
    )
    return checkpoint.restore(run_dir, step, {"params": target})["params"]


def _average(arguments: list[str]) -> None:
    root = _load("average", arguments)
    from midjax import config
    from midjax.average import recipe

    model = recipe.run(root, find=_found, scorer=_scorer)
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


def _eval(arguments: list[str]) -> None:
    root = _load("eval", arguments)
    from midjax import log
    from midjax.evals import run
    from midjax.model import sharding

    model, step, facts = _found(root.run, root.step)
    tokenizer_hash = facts["manifest"]["tokenizer_hash"]
    mesh = sharding.make(root.mesh)
    run.check(root, model, mesh, tokenizer_hash=tokenizer_hash)  # before the parameters are read
    params = _params(model, root.run, step, mesh)
    result = run.run(root, model, params, step, mesh, tokenizer_hash=tokenizer_hash)
    where = run.write(result)
    for name, domain in result["domains"].items():
        bits = domain["bits_per_byte"]
        log.say(f"  {name}: {'not finite' if bits is None else f'{bits:.4f}'} bits per byte")
    log.say(f"written to {where}")


def _export(arguments: list[str]) -> None:
    root = _load("export", arguments)
    from midjax import checkpoint, export, files, log
    from midjax.model import sharding

    model, step, facts = _found(root.run, root.step)
    root = dataclasses.replace(root, step=step)
    stages = checkpoint.lineage(root.run, step)
    known = {"said": _said(stages), "tokenizer_hash": facts["manifest"]["tokenizer_hash"]}
    export.check(root, model, **known)  # before the parameters are read
    params = _params(model, root.run, step, sharding.make(root.mesh))
    evals = {
        place.stem: files.read_json(place)
        for place in sorted((files.path(root.run) / "eval").glob("*.json"))
    }
    lineage = {
        "stages, oldest first": stages,
        "evals": {name: found for name, found in evals.items() if found["step"] == step},
    }
    result = export.run(root, model, params, lineage, **known)
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


def _report(arguments: list[str]) -> None:
    root = _load("report", arguments)
    from midjax.report import page

    page.run(root)
    print(page.terminal_table(root))


def _demo(arguments: list[str]) -> None:
    from midjax import demo

    demo.run(arguments, main)


VERBS = {
    "demo": Verb(
        _demo,
        "mid-trains a small model on real text, with a control, from nothing to a report",
        """\
  midjax demo [--fresh]

Runs, in this process, the verbs below with the recipes gin/recipes/demo_*.gin and prints each
command before it runs. Takes 3 to 4 minutes on 2 quiet CPU cores. What is finished is kept: the
same command goes on after an interruption, and --fresh starts over.
Ends with 60 updates of a model that others pretrained, llama2.c's stories260K.
Writes build/demo/: report.html, stories.html, export/ (a Hugging Face folder), tokens/ and the
runs.""",
    ),
    "tokenize": Verb(
        _tokenize,
        "corpora -> token folders (once per tokenizer)",
        """\
  midjax tokenize --gin_file=gin/recipes/demo_tokenize.gin

Reads JSON lines, plain text (.gz and .zst too), Parquet, ArrayRecord, datasets folders, TFDS and
seqio Tasks and Mixtures; writes OUTPUT/<source>/ with token shards, masks of what bears loss, and a
manifest (hashes of tokenizer and input, counts, what was dropped and why, what may do harm). Uses
all processors (Tokenize.processes). The same command goes on after an interruption, and keeps
sources whose tokenizer, reader and files did not change.""",
    ),
    "import": Verb(
        _import,
        "a checkpoint of MaxText, llama2.c or Hugging Face -> a run directory to start from",
        """\
  midjax import --gin_file=gin/recipes/import_maxtext.gin --gin.MaxText.path=CHECKPOINTS/STEP

Writes Import.output: checkpoints/<step>/ with parameters and, where the source has them, Adam's
moments, counts and learning rate; tokenizer/; source/ (config.json and generation_config.json of
a Hugging Face folder, for a later export); model.gin (the model, a --gin_file for recipes);
import.json (what was made of what, what was left out); config.json. Start a run from it with
Start.run; eval and export read it like any run.""",
    ),
    "train": Verb(
        _train,
        "pretrains or mid-trains; the same command resumes",
        """\
  midjax train --gin_file=gin/recipes/demo_midtrain.gin

Writes Train.run_dir: config.json, config.gin, metrics.jsonl (a row per update), events.jsonl,
checkpoints/<step>/. If that folder holds a checkpoint of this run, the newest whole one is
resumed, whatever Start says (damaged ones are set aside, and it says so); otherwise Start says
what the run begins from. The recipe must be the one that the run began with, but for run_dir,
mesh, microbatches, checkpoint, model.remat and model.loss_chunk_tokens, and for the mixture: one
that changed is a new stage from the next row on, and each source goes on where it was.""",
    ),
    "average": Verb(
        _average,
        "several checkpoints of one model -> one: last N, soups, interpolation",
        """\
  midjax average --gin_file=gin/recipes/average_last.gin

Writes Average.output, a run directory like an import's: checkpoints/<step>/ with parameters only;
average.json (ingredients, weights, hashes, what was scored); model.gin; config.json; tokenizer/ if
a run that it comes from has it. eval and export read it like any run, and training starts from it
with Start.run and Start.kind = 'weights'. Average.method is LastN (checkpoints of one run), Soup
(ends of several), GreedySoup (those of them that lower the bits per byte) or Interpolation.""",
    ),
    "eval": Verb(
        _eval,
        "bits per byte by domain, loss by position, needle test, samples",
        """\
  midjax eval --gin_file=gin/recipes/demo_eval.gin --gin.Eval.run=build/demo/midtrain

Reads parameters only. Writes RUN/eval/<name>.json.""",
    ),
    "export": Verb(
        _export,
        "a run -> a Hugging Face folder, read back and compared",
        """\
  midjax export --gin_file=gin/recipes/demo_export.gin

Reads parameters only, onto Export.mesh. Writes safetensors, config, tokenizer, generation config
(those of the Hugging Face folder that the run comes from, if it comes from one) and a model card.
Reads every tensor back and compares its bits; compares logits with transformers, where PyTorch is
installed and the host has room for the model, and prints what was compared.""",
    ),
    "report": Verb(
        _report,
        "run directories and evals -> one self-contained HTML page",
        """\
  midjax report --gin_file=gin/recipes/demo_report.gin

Reads metrics.jsonl, events.jsonl, config.json and eval/*.json. Prints the table of the page.""",
    ),
    "show": Verb(
        _show,
        "prints what a verb would use and runs nothing",
        """\
  midjax show train --gin_file=gin/recipes/demo_midtrain.gin --gin.Train.train_tokens=1_000_000
  midjax show mixture --gin_file=gin/recipes/demo_midtrain.gin

With a verb, every field as `path = value`; `*` marks what differs from its default. With `mixture`,
what `midjax train` will read, counted row by row: shares asked and in force, tokens, epochs and
repeats of each stage and source. It fails where train would: a cap that would be broken, a source
that runs dry. It needs the token folders, and the checkpoint that Start names.

  midjax show schedule --gin_file=gin/recipes/demo_midtrain.gin

The learning rates of a recipe of `train`: a table of steps, tokens and rates where they turn and
every 5 %, and a plot, RUN_DIR/schedule.svg. Rates that come from a checkpoint are read from it;
neither data nor devices are touched.""",
    ),
}

if __name__ == "__main__":
    sys.exit(main())
