# SPDX-License-Identifier: Apache-2.0
"""`midjax VERB`: one table of verbs. Heavy imports happen inside a verb, never for `--help`."""

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import midjax
from midjax import show, training, verbs

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
Exit codes: 0  done
            1  a bug of midjax, with its traceback
            2  a mistake, told in one message; MIDJAX_TRACEBACK=1 shows where it was raised
            4  train: diverged, too many updates in a row were skipped; the message names the last
               good checkpoint and the rows. To start it again changes nothing
            5  train: the run's only checkpoint is damaged, and going on would mean starting over
            6  train, eval --against: a gate failed, more was forgotten than it allows; what was
               done is saved
            42 train: SIGTERM; the run saved and ended. The same command goes on, bit for bit
           134 train in several processes: one of them is missing or was lost. Start all again
           171 train: checkpoints cannot be written or read, or a bucket cannot be reached (a full
               disk, an outage). The same command goes on from the newest whole checkpoint
           143 killed by SIGTERM before the first update or after the last: nothing was lost
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb. Returns the exit code, see `USAGE`."""
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
    except Exception as error:
        from midjax import files

        told = isinstance(error, ValueError | OSError) or hasattr(error, "exit_code")
        if not told and not files.is_of_network(error):
            raise
        # What a user gave, or the machine's disk, does not fit. Other kinds are bugs for sure and
        # keep their traceback; where one of these is a bug, the variable shows its traceback too.
        if os.environ.get("MIDJAX_TRACEBACK"):
            raise
        print(f"midjax {name}: {error}", file=sys.stderr)
        is_outage = name == "train" and files.is_outage(error)
        return getattr(error, "exit_code", files.OutageError.exit_code if is_outage else 2)
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
    rows = "\n".join(f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items())
    return USAGE.format(version=midjax.__version__, verbs=rows, recipes=_recipes_place()).rstrip()


def _recipes_place() -> str:
    return "gin/recipes/ (in an installed wheel: midjax/gin/recipes/)"


def _demo(arguments: list[str]) -> None:
    from midjax import demo

    demo.run(arguments, main)


def _plan(arguments: list[str]) -> None:
    from midjax import plan_verb

    plan_verb.run(arguments)


def _launch(arguments: list[str]) -> None:
    from midjax import launch_verb

    launch_verb.run(arguments)


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
        verbs.tokenize,
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
        verbs.import_,
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
        training.train,
        "pretrains or mid-trains; the same command resumes",
        """\
  midjax train --gin_file=gin/recipes/demo_midtrain.gin

Writes Train.run_dir: config.json, config.gin, metrics.jsonl (a row per update), events.jsonl,
checkpoints/<step>/; layer_norms.jsonl if asked; skipped_steps.json after a rollback; with
Train.evaluations evals.jsonl and eval/<name>-<step>.json. If that folder holds a checkpoint of this
run, the newest whole one is resumed, whatever Start says (damaged ones are set aside, and it says
so); otherwise Start says what the run begins from. The recipe must be the one that the run began
with, but for run_dir, mesh, state_sharding, state_memory, fsdp_sums, microbatches, checkpoint,
compilation_cache, trackers, device_flops_per_second, optimizer.clip_norm, ema, model.remat and
model.loss_chunk_tokens, for how it is guarded and measured (spikes, rollback,
max_consecutive_skips, layer_norms_every_steps, noise_scale_every_steps, evaluations), for batch
sizes and the mixture: one that changed is a new stage from the next row on, and each source goes on
where it was.
With more train_tokens, and phases appended to its schedule, the run is extended, where every update
that was done keeps its rate. Where Train.compilation_cache, or the variable
JAX_COMPILATION_CACHE_DIR, names a folder, later runs find their programs compiled. Ends with where
the time of all its processes went.
On a TPU of several hosts start the same command on each: they find each other. Anywhere else give
each JAX_COORDINATOR_ADDRESS=HOST:PORT of process 0, JAX_NUM_PROCESSES and JAX_PROCESS_ID, from 0.
All share one run_dir. Process 0 writes and speaks; SIGTERM to any ends all of them after the same
update; an error of one ends all, with its message. Train.hosts says how long they wait.""",
    ),
    "branch": Verb(
        training.branch,
        "many decays of one trunk (lengths, mixtures, seeds, places) as one list of jobs",
        """\
  midjax branch --gin_file=gin/recipes/demo_branch.gin [--list] [--only NAME]

Branch.jobs is a dict of jobs, each a recipe of `train` built in a gin scope: what is bound without
a scope is common, `NAME/Class.field = value` is one job's. Job NAME runs in Train.run_dir/NAME, an
ordinary run directory: `midjax train` with the config.gin in it gives the same bits.
All jobs are checked before the first one runs: the trunk's checkpoints, that its rate was held
there, moments, mixtures, caps. The same command keeps what is finished and goes on with what is
not; a job that fails is named at the end (exit code 2), and the others run.
  --list       prints the jobs, their lengths and what they will take; runs nothing
  --only NAME  runs that one, may be repeated: so that each can run on a machine of its own
Writes Train.run_dir/branches.json (losses over the last 5 % of each job), prints it as a table, and
plots loss against the length of the decay: branches.svg.""",
    ),
    "average": Verb(
        verbs.average,
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
        verbs.evaluate,
        "bits per byte by domain, tasks, loss by position, needle test, long tasks, samples",
        """\
  midjax eval --gin_file=gin/recipes/demo_eval.gin --gin.Eval.run=build/demo/midtrain
  midjax eval --gin_file=gin/recipes/eval_core_small.gin --gin.Tasks.data=DATA --gin.Tasks.limit=10
  midjax eval --gin_file=gin/recipes/eval_huggingface.gin --gin.Eval.folder=HF --gin.Eval.output=OUT
  midjax eval --gin_file=gin/recipes/eval_long.gin --gin.Eval.run=RUN --gin.Eval.tokenizer=FOLDER

Measures a run (Eval.run) or a Hugging Face folder (Eval.folder, with Eval.output for the results)
on token folders (Eval.domains), on tasks (Eval.tasks), or on both. Tasks.names has tasks, groups
(core_small below 7B parameters, core_large from there on) or files of your own; their data are
read from Tasks.data, where each lies as it is public. Missing data, unknown tasks, a context that
is too short and, for code, a sandbox that does not hold are told before parameters are read.
Eval.long_tasks asks RULER's tasks at any length, made of a token folder's text.
Reads parameters only, and prints a table. Writes RUN/eval/<name>.json and, of tasks,
<name>.documents.jsonl, a line per document; appends a line to RUN/evals.jsonl.
  --against PARENT  compares with a run (its newest checkpoint), RUN/checkpoints/STEP or the file of
                    a result: deltas by domain and task with paired bootstrap intervals, retention
                    in one figure. PARENT is measured the same way where it was not yet. Writes
                    RUN/eval/<name>.against.json; exit code 6 where a gate of Eval.comparison fails.
""",
    ),
    "export": Verb(
        verbs.export,
        "a run -> a Hugging Face folder, read back and compared",
        """\
  midjax export --gin_file=gin/recipes/demo_export.gin

Reads parameters only, onto Export.mesh. Writes safetensors, config, tokenizer, generation config
(those of the Hugging Face folder that the run comes from, if it comes from one) and a model card.
Reads every tensor back and compares its bits; compares logits with transformers, where PyTorch is
installed and the host has room for the model, and prints what was compared.""",
    ),
    "report": Verb(
        verbs.report,
        "run directories and evals -> one self-contained HTML page",
        """\
  midjax report --gin_file=gin/recipes/demo_report.gin

Reads metrics.jsonl, events.jsonl, config.json and eval/*.json. Prints the table of the page.""",
    ),
    "plan": Verb(
        _plan,
        "does it fit, how fast, what does it cost: by the TPU's compiler, without a TPU",
        """\
  midjax plan --gin_file=gin/recipes/demo_midtrain.gin --slice=v5e-4 [--slice=...] [--search]

Compiles the train step of any recipe of `train` as it would run on each slice, and prints
per chip: peak memory and what fills it, FLOPs, the time of a step and its parts, the utilisation
to expect; and for all of Train.train_tokens: time, chip-hours, cost, checkpoints. Needs libtpu
(pip install 'midjax[tpu]') and neither a TPU nor data, checkpoints or a tokenizer.
  --slice=SLICE   v4-*, v5e-*, v5p-*, v6e-*; several slices as 2xv5e-256; may be repeated
  --stage=RECIPE  the stage after, such as the extension to longer rows; may be repeated
  --price=USD     per chip and hour, of all chips or as --price=v5e:1.2; without it there is no cost
  --search        tries meshes, microbatches and remat policies, and prints the best as overrides
--gin.Class.field=VALUE holds for every stage; --gin.Plan.field=VALUE for the plan: see
`midjax show plan`. What does not fit is a row that says how much is missing. Compiled steps are
kept in ~/.cache/midjax/plan: the same plan again takes seconds. Writes Plan.output: plan.html, with
memory over a step and the roofline, and plan.json.
All of it is a prediction, and none a measurement.""",
    ),
    "launch": Verb(
        _launch,
        "the same `train` command on Cloud TPU: printed, asked for, kept going",
        """\
  midjax launch --gin_file=gin/recipes/launch_v5e.gin [ACTION] [--dry-run]

  create   (the default) asks for the slice, and starts the run on all its machines
  watch    keeps it going: after a preemption or a failure that a restart can mend it gives the
           slice back and asks again, up to Launch.max_restarts times, until the target is reached
  status   the state of the slice, and what worker 0 last said
  logs     the log of worker 0, or of --worker=SLICE-WORKER, as copied each minute to the bucket
  stop     SIGTERM: the trainer saves its state and ends; the slice stays
  delete   gives the slice back; what is in the bucket stays

--dry-run prints the commands, for a person to run or to read, and writes the files that they name
to build/launch/NAME/. So it does, whatever was asked for, where gcloud is not installed.
Launch.backend is 'vm' (a queued resource; a unit that outlives the connection), 'qr' (the same from
the startup script, so that it comes back after a reboot) or 'gke' (a JobSet; prints the line of xpk
too). All is in Launch.bucket/NAME: launch/ (what was run), logs/, exit/ (codes), run/ (the run).
Exit codes of the run: 0 done; 42 and 127 to 255 start again; all others stop, and `watch` says why.
midjax show launch --gin_file=gin/recipes/launch_v5e.gin prints every field.""",
    ),
    "show": Verb(
        show.show,
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
neither data nor devices are touched.

  midjax show lineage --run=build/demo/midtrain [--step=N]

Every stage that a checkpoint comes from, since pretraining, as its manifest tells it: hashes of
checkpoints and recipes, mixtures, learning rates, tokens by source.""",
    ),
}

if __name__ == "__main__":
    sys.exit(main())
