# SPDX-License-Identifier: Apache-2.0
"""The verb `eval`: a model's numbers on held-out text and tasks, written to run/eval/<name>.json.

    {"name", "run", "folder", "step", "weights", "row_tokens", "context_tokens", "compute_dtype",
     "tokenizer_hash",
     "domains": {domain: {"bits_per_byte", "nats_per_token", "tokens", "bytes", "documents",
                          "content_hash", "blocks": [{"nats", "bytes"}]}},
     "by_position": {"source", "row_tokens", "documents", "dropped",
                     "buckets": [{"from", "to", "nats_per_token", "tokens"}]} or null,
     "needle": {"source", "per_cell", "digits", "statement", "question", "seed",
                "cells": [{"row_tokens", "depth", "accuracy", "nats_per_token", "nats_without",
                           "saved_error"}]} or null,
     "long_tasks": see `long.run`, or null,
     "samples": [{"prompt", "continuation"}], "tasks", "groups": see `suite`}

Beside it `<name>.documents.jsonl` has a line for each document of each task (`task_rows`), and
run/evals.jsonl a line for each evaluation (`record`). Of a Hugging Face folder, which is not ours
to write into, "run" is `Eval.output`, and "step" 0.

Everything that can be known to be wrong is known before the model runs once.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import tokenizers

from midjax import files, log
from midjax.batches import shards, vocabulary
from midjax.evals import batcher, engine, generate, likelihood_tokens, loss, needle, record, suite
from midjax.evals.long import run as long_run
from midjax.evals.recipe import Eval
from midjax.model import architecture, context, hf_generation
from midjax.units import ceil_div


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """What `run` reads, checked."""

    sources: dict[str, shards.TokenSource]
    tokenizer: tokenizers.Tokenizer
    tokenizer_hash: str
    vocab_size: int
    needle: needle.Inputs | None
    long_tasks: long_run.Inputs | None
    tasks: suite.Inputs | None


def run(
    config: Eval,
    model_config: architecture.TransformerConfig,
    params: Any,
    step: int,
    jax_mesh: jax.sharding.Mesh | None = None,
    *,
    tokenizer_hash: str | None = None,
    inputs: Inputs | None = None,
    between: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Computes the result, with the lines of "documents"; `write` puts it into the run.

    Args:
      params: of `model_config`, sharded over `jax_mesh` or on one device.
      step: completed updates of the checkpoint that `params` came from.
      tokenizer_hash: of the tokenizer that the model was trained with, as its checkpoint says;
        None where that is not known, which leaves only the vocabulary's size to compare.
      inputs: what `check` gave, which may serve many times; None checks here.
      between: called between batches; may raise, which ends the evaluation with nothing written.
    """
    if inputs is None:
        inputs = check(config, model_config, jax_mesh, tokenizer_hash=tokenizer_hash)
    asked = suite.Asked(tasks={}, groups={}, documents=[])
    if config.tasks and inputs.tasks:
        model = engine.of_model(
            model_config,
            params,
            inputs.tasks.tokenizer,
            _eos_ids(config),
            jax_mesh,
            batch_rows=config.tasks.batch_rows,
            batch_tokens=config.tasks.batch_tokens,
            between=between,
        )
        asked = suite.run(config.tasks, inputs.tasks, model)
    return {
        "name": config.name,
        "run": config.run or config.output,
        "folder": config.folder,
        "step": step,
        "weights": config.weights,
        "row_tokens": config.row_tokens,
        "context_tokens": model_config.context_tokens,
        "compute_dtype": model_config.compute_dtype,
        "tokenizer_hash": inputs.tokenizer_hash,
        **_of_texts(config, inputs, model_config, params, jax_mesh, between),
        "samples": _samples(config, inputs, model_config, params, jax_mesh),
        "tasks": asked.tasks,
        "groups": asked.groups,
        "documents": asked.documents,
    }


def _of_texts(
    config: Eval,
    inputs: Inputs,
    model_config: architecture.TransformerConfig,
    params: Any,
    jax_mesh: jax.sharding.Mesh | None,
    between: Callable[[], None],
) -> dict[str, Any]:
    """The parts of the result that token folders give."""
    if not inputs.sources:
        return {"domains": {}, "by_position": None, "needle": None, "long_tasks": None}
    row_nll = loss.from_model(model_config, params, jax_mesh)
    domains = {}
    with log.Progress(f"eval {config.name}", _total_tokens(config, inputs)) as progress:

        def advance(tokens: int, note: str = "") -> None:
            progress.advance(tokens, note=note)
            between()

        for name in config.domains:
            assert config.row_tokens is not None and config.batch_rows is not None
            domains[name] = loss.domain(
                inputs.sources[name],
                row_nll,
                row_tokens=config.row_tokens,
                batch_rows=config.batch_rows,
                advance=functools.partial(advance, note=name),
            )
            domains[name]["content_hash"] = inputs.sources[name].manifest["content_hash"]
            if domains[name]["bits_per_byte"] is None:
                log.say(f"eval {config.name}: the loss on {name} is not finite.")
        by_position = None
        if config.long:
            source = inputs.sources[config.long.source]
            by_position = loss.by_position(source, row_nll, config.long, advance)
        needles = None
        if config.needle and inputs.needle:
            score = needle.from_model(model_config, params, jax_mesh)
            needles = needle.run(config.needle, inputs.needle, score, advance)
        long_tasks = None
        if config.long_tasks and inputs.long_tasks:
            model = engine.of_model(
                model_config,
                params,
                inputs.long_tasks.tokenizer,
                _eos_ids(config),
                jax_mesh,
                batch_rows=config.long_tasks.batch_rows,
                context_tokens=config.long_tasks.context_tokens,
                between=between,
            )
            long_tasks = long_run.run(config.long_tasks, inputs.long_tasks, model, advance)
    return {
        "domains": domains,
        "by_position": by_position,
        "needle": needles,
        "long_tasks": long_tasks,
    }


def expected(
    config: Eval, model_config: architecture.TransformerConfig, inputs: Inputs
) -> dict[str, Any]:
    """What is known of a result before it is measured: names of scores, texts and settings."""
    hashes = {name: inputs.sources[name].manifest["content_hash"] for name in config.domains}
    dtype = model_config.compute_dtype
    found: dict[str, Any] = {"name": config.name, "run": config.run or config.output}
    if config.tasks and inputs.tasks:
        found["tasks"] = suite.expected(config.tasks, inputs.tasks, dtype)
    return found | {
        "row_tokens": config.row_tokens,
        "compute_dtype": dtype,
        "tokenizer_hash": inputs.tokenizer_hash,
        "domains": {name: {"content_hash": known} for name, known in hashes.items()},
    }


def write(
    result: dict[str, Any],
    *,
    stem: str | None = None,
    scores: Mapping[str, float | None] | None = None,
) -> str:
    """Writes run/eval/<name>.json, <name>.documents.jsonl if tasks were asked, and a line of
    run/evals.jsonl; each whole or not at all, from process 0. Returns the path of the first.

    Args:
      stem: of the files, where it is not the name.
      scores: of the line, where they are not just those of the result.
    """
    folder, stem = files.path(result["run"]) / "eval", stem or result["name"]
    target = str(folder / f"{stem}.json")
    if jax.process_index() == 0:
        rows = result["documents"]
        if rows:
            # Escaped: texts may hold what ends a line for some readers, or half a surrogate pair.
            lines = "".join(json.dumps(row, default=str) + "\n" for row in rows)
            files.write_text(folder / f"{stem}.documents.jsonl", lines)
        files.write_json(target, {k: v for k, v in result.items() if k != "documents"})
    kind = {name: result[name] for name in ("step", "name", "weights")}
    record.append(result["run"], **kind, scores=scores or record.scores(result))
    return target


def check(
    config: Eval,
    model_config: architecture.TransformerConfig,
    jax_mesh: jax.sharding.Mesh | None = None,
    *,
    tokenizer_hash: str | None = None,
) -> Inputs:
    """Opens every input and refuses what can't give true numbers.

    Raises:
      FileNotFoundError: no token folder, no tokenizer, or no data of a task.
      ValueError: no documents, no BOS, another tokenizer, a vocabulary that the model doesn't
        have, rows beyond the context, prompts that don't fit, a batch or a row that doesn't divide
        over the mesh, keys that can't be hidden; what `suite.check` refuses.
      SandboxUnavailable: as `suite.check`.
    """
    place = config.tokenizer_folder
    opened = vocabulary.FastTokenizer(path=place, bos_token=None, eos_token=None).open()
    tokenizer, facts = opened.tokenizer, opened.facts
    _check_model(config, model_config, facts, tokenizer_hash)
    divisor = loss.row_divisor(jax_mesh)
    for name, rows in (("", config), ("long.", config.long)):
        if rows is not None and (rows.batch_rows or 0) % divisor:
            raise ValueError(
                f"Eval.{name}batch_rows={rows.batch_rows} does not divide over the mesh's "
                f"{divisor} data shards. Choose a multiple of {divisor}."
            )
    _check_context(config, jax_mesh)
    others = [part.source for part in (config.long, config.needle, config.long_tasks) if part]
    names = dict.fromkeys([*config.domains, *others])
    sources = {name: _source(config, name, facts) for name in names}
    needles = None
    if config.needle:
        needles = needle.check(config.needle, sources[config.needle.source], tokenizer, jax_mesh)
    if config.long and not len(config.long.plan(sources[config.long.source])):
        lengths = sources[config.long.source].lengths
        raise ValueError(
            f"No document of {config.long.source!r} has {config.long.row_tokens + 1} tokens; the "
            f"longest has {lengths.max()}. Choose a smaller Eval.long.row_tokens."
        )
    if config.samples:
        bos = sources[config.domains[0]].manifest["bos_id"]
        asked = config.samples.asked()
        generate.prompt_ids(asked, tokenizer, bos, model_config.context_tokens)
    long_tasks = None
    if config.long_tasks:
        source = sources[config.long_tasks.source]
        long_tasks = long_run.check(config.long_tasks, source, tokenizer)
    prepared = None
    if config.tasks:
        prepared = suite.check(
            config.tasks, context_tokens=model_config.context_tokens, tokenizer_folder=place
        )
    return Inputs(
        sources=sources,
        tokenizer=tokenizer,
        tokenizer_hash=facts["tokenizer_hash"],
        vocab_size=facts["vocab_size"],
        needle=needles,
        long_tasks=long_tasks,
        tasks=prepared,
    )


def _check_model(
    config: Eval,
    model_config: architecture.TransformerConfig,
    facts: dict[str, Any],
    tokenizer_hash: str | None,
) -> None:
    """The tokenizer must be the model's, and rows must fit its context."""
    place = config.tokenizer_folder
    if facts["vocab_size"] > model_config.vocab_size:
        raise ValueError(
            f"The tokenizer in {place!r} has {facts['vocab_size']} tokens, the model "
            f"of {config.model!r} has {model_config.vocab_size}. Give the tokenizer it was "
            "trained with."
        )
    if tokenizer_hash not in (None, facts["tokenizer_hash"]):
        raise ValueError(
            f"The model of {config.model!r} was trained with another tokenizer (sha256 "
            f"{tokenizer_hash[:12]}) than the one in {place!r} (sha256 "
            f"{facts['tokenizer_hash'][:12]}). Give the tokenizer it was trained with."
        )
    if (config.row_tokens or 0) > model_config.context_tokens:
        raise ValueError(
            f"Eval.row_tokens={config.row_tokens} exceeds the model's context of "
            f"{model_config.context_tokens} tokens. Choose row_tokens that every compared model "
            "can read; Eval.long may go beyond."
        )


def _check_context(config: Eval, jax_mesh: jax.sharding.Mesh | None) -> None:
    """Rows that the mesh's `context` splits must divide over it."""
    shards_of_row = 1 if jax_mesh is None else context.shards(jax_mesh.shape)
    for rows in (config, config.long):
        if rows is not None and rows.row_tokens is not None:
            context.order(rows.row_tokens, shards_of_row)


def _source(config: Eval, name: str, tokenizer: dict[str, Any]) -> shards.TokenSource:
    assert config.tokens is not None
    source = shards.TokenSource(str(files.path(config.tokens) / name))
    manifest = source.manifest
    if not len(source):
        raise ValueError(f"Domain {name!r} ({source.folder}) has no documents. Tokenize some.")
    if manifest["tokenizer_hash"] != tokenizer["tokenizer_hash"]:
        raise ValueError(
            f"{source.folder} was tokenized with another tokenizer (sha256 "
            f"{manifest['tokenizer_hash'][:12]}, vocabulary {manifest['vocab_size']}) than "
            f"{config.tokenizer_folder!r} (sha256 {tokenizer['tokenizer_hash'][:12]}, vocabulary "
            f"{tokenizer['vocab_size']}). Tokenize it again, or give the tokenizer of its tokens."
        )
    if manifest["bos_id"] is None:
        raise ValueError(
            f"{source.folder} was tokenized without BOS, so the first token of each text has "
            "nothing to be predicted from. Tokenize held-out text with bos_token set; a model "
            "without one is given its EOS token there."
        )
    return source


def _total_tokens(config: Eval, inputs: Inputs) -> int:
    pairs = [int((inputs.sources[name].lengths - 1).sum()) for name in config.domains]
    row = config.row_tokens or 1
    tokens = sum(ceil_div(count, row) * row for count in pairs)
    if config.long:
        plan = config.long.plan(inputs.sources[config.long.source])
        tokens += len(plan) * config.long.row_tokens
    if config.needle:
        tokens += needle.total_tokens(config.needle)
    if config.long_tasks:
        tokens += long_run.total_tokens(config.long_tasks)
    return tokens


def _eos_ids(config: Eval) -> tuple[int, ...]:
    """What ends a text: what the model's first folder said, else what its tokenizer's says."""
    said = hf_generation.kept(config.run) if config.run else None
    if said is not None and said.eos_ids:
        return said.eos_ids
    return likelihood_tokens.eos_ids(config.tokenizer_folder)


def _samples(
    config: Eval,
    inputs: Inputs,
    model_config: architecture.TransformerConfig,
    params: Any,
    jax_mesh: jax.sharding.Mesh | None,
) -> list[dict[str, str]]:
    if config.samples is None:
        return []
    manifest = inputs.sources[config.domains[0]].manifest
    eos_ids = {manifest["eos_id"], *_eos_ids(config)} - {None}
    sampler = generate.Sampler(
        model=batcher.Model(
            config=model_config,
            params=params,
            vocab_size=inputs.vocab_size,
            eos_ids=tuple(sorted(eos_ids)),
            jax_mesh=jax_mesh,
        ),
        tokenizer=inputs.tokenizer,
        bos_id=manifest["bos_id"],
    )
    found = sampler.generate(config.samples.asked())
    return [
        {"prompt": prompt, "continuation": text}
        for prompt, (text,) in zip(config.samples.prompts, found, strict=True)
    ]
