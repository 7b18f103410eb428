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
    if not arguments or arguments[0] not in config.ROOTS:
        raise ValueError(
            f"show needs one of {', '.join(config.ROOTS)}, mixture, and its --gin_file=RECIPE"
        )
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
    from midjax.train import loop

    begun = loop.begin(root)  # a recipe that cannot run leaves no run directory behind
    config.save(root, root.run_dir)
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
    import jax

    from midjax import checkpoint, export, files, log
    from midjax.model import sharding

    model, step, facts = _found(root.run, root.step)
    root = dataclasses.replace(root, step=step)
    tokenizer_hash = facts["manifest"]["tokenizer_hash"]
    export.check(root, model, tokenizer_hash=tokenizer_hash)  # before the parameters are read
    mesh = sharding.make(sharding.Mesh(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    params = _params(model, root.run, step, mesh)
    evals = {
        place.stem: files.read_json(place)
        for place in sorted((files.path(root.run) / "eval").glob("*.json"))
    }
    lineage = {
        "stages, oldest first": checkpoint.lineage(root.run, step),
        "evals": {name: found for name, found in evals.items() if found["step"] == step},
    }
    result = export.run(root, model, params, lineage, tokenizer_hash=tokenizer_hash)
    files.write_json(files.path(root.output) / "export.json", dataclasses.asdict(result))
    log.say(
        f"{result.folder}: logits within {result.max_difference:.1e} of {result.compared_with}, "
        f"over {result.compared_tokens} tokens"
    )


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
command before it runs. Takes about 3 minutes on 2 quiet CPU cores. What is finished is kept: the
same command goes on after an interruption, and --fresh starts over.
Writes build/demo/: report.html, export/ (a Hugging Face folder), tokens/ and the runs.""",
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
moments, counts and learning rate; tokenizer/; model.gin (the model, a --gin_file for recipes);
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
    "eval": Verb(
        _eval,
        "bits per byte by domain, loss by position, needle test, samples",
        """\
  midjax eval --gin_file=gin/recipes/demo_eval.gin --gin.Eval.run=build/demo/midtrain

Reads parameters only. Writes RUN/eval/<name>.json.""",
    ),
    "export": Verb(
        _export,
        "a run -> a Hugging Face folder, loaded back and compared",
        """\
  midjax export --gin_file=gin/recipes/demo_export.gin

Reads parameters only. Writes safetensors, config, tokenizer and a model card, loads the folder
back (with transformers where PyTorch is installed, else with midjax's own importer) and prints
the largest difference between logits.""",
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
that runs dry. It needs the token folders, and the checkpoint that Start names.""",
    ),
}

if __name__ == "__main__":
    sys.exit(main())
