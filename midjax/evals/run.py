# SPDX-License-Identifier: Apache-2.0
"""The verb `eval`: a model's numbers on held-out token folders, written to run/eval/<name>.json.

    {"name", "run", "step", "weights", "row_tokens", "context_tokens", "tokenizer_hash",
     "domains": {domain: {"bits_per_byte", "nats_per_token", "tokens", "bytes", "documents",
                          "content_hash", "blocks": [{"nats", "bytes"}]}},
     "by_position": {"source", "row_tokens", "documents", "dropped",
                     "buckets": [{"from", "to", "nats_per_token", "tokens"}]} or null,
     "needle": {"source", "per_cell", "digits", "statement", "question", "seed",
                "cells": [{"row_tokens", "depth", "accuracy", "nats_per_token", "nats_without",
                           "saved_error"}]} or null,
     "samples": [{"prompt", "continuation"}]}

Everything that can be known to be wrong is known before the model runs once.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import tokenizers

from midjax import files, log
from midjax.batches import shards, vocabulary
from midjax.evals import batcher, generate, loss, needle
from midjax.evals.generate import Samples
from midjax.evals.loss import LongDocuments
from midjax.evals.needle import Needles
from midjax.model import architecture, context, hf_generation, sharding
from midjax.units import ceil_div


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eval:
    """What to measure on which checkpoint.

    Attributes:
      name: of the result file.
      run: run directory whose checkpoint is measured.
      step: completed updates of that checkpoint; None is the newest.
      weights: "params", or "ema", the average that a run with `Train.ema` keeps of them.
      tokens: folder that holds one token folder per source, text the model was not trained on.
      domains: names of the token folders that are scored in bits per byte.
      row_tokens: how much of a document the model sees at once there; the same for every model
        that is to be compared.
      batch_rows: rows per batch; divides over the mesh's data axes.
      long: long documents for loss by position, which may exceed the model's context; None skips.
      samples: prompts to continue; None skips.
      needle: pass keys hidden in long text, which may exceed the model's context; None skips.
      tokenizer: folder with `tokenizer.json`, the one the tokens were made with.
      mesh: devices; need not be those of the training.
    """

    name: str
    run: str
    step: int | None
    tokens: str
    domains: tuple[str, ...]
    row_tokens: int
    batch_rows: int
    long: LongDocuments | None
    samples: Samples | None
    tokenizer: str
    mesh: sharding.Mesh
    needle: Needles | None = None
    weights: Literal["params", "ema"] = "params"

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ValueError(f"Eval.name={self.name!r} must be a plain file name, such as 'after'.")
        if not self.domains:
            raise ValueError("Eval.domains is empty. Name at least one token folder.")
        if repeated := sorted({d for d in self.domains if self.domains.count(d) > 1}):
            raise ValueError(f"Eval.domains names {repeated} more than once.")
        for name in ("row_tokens", "batch_rows"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"Eval.{name} must be 1 or more, got {value}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Inputs:
    """What `run` reads, checked."""

    sources: dict[str, shards.TokenSource]
    tokenizer: tokenizers.Tokenizer
    tokenizer_hash: str
    vocab_size: int
    needle: needle.Inputs | None


def run(
    config: Eval,
    model_config: architecture.TransformerConfig,
    params: Any,
    step: int,
    jax_mesh: jax.sharding.Mesh | None = None,
    *,
    tokenizer_hash: str | None = None,
) -> dict[str, Any]:
    """Computes the result (the module's docstring shows it); `write` puts it into the run.

    Args:
      params: of `model_config`, sharded over `jax_mesh` or on one device.
      step: completed updates of the checkpoint that `params` came from.
      tokenizer_hash: of the tokenizer that the model was trained with, as its checkpoint says;
        None where that is not known, which leaves only the vocabulary's size to compare.
    """
    inputs = check(config, model_config, jax_mesh, tokenizer_hash=tokenizer_hash)
    row_nll = loss.from_model(model_config, params, jax_mesh)
    domains = {}
    with log.Progress(f"eval {config.name}", _total_tokens(config, inputs)) as progress:
        for name in config.domains:
            domains[name] = loss.domain(
                inputs.sources[name],
                row_nll,
                row_tokens=config.row_tokens,
                batch_rows=config.batch_rows,
                advance=functools.partial(progress.advance, note=name),
            )
            domains[name]["content_hash"] = inputs.sources[name].manifest["content_hash"]
            if domains[name]["bits_per_byte"] is None:
                log.say(f"eval {config.name}: the loss on {name} is not finite.")
        by_position = None
        if config.long:
            source = inputs.sources[config.long.source]
            by_position = loss.by_position(source, row_nll, config.long, progress.advance)
        needles = None
        if config.needle and inputs.needle:
            score = needle.from_model(model_config, params, jax_mesh)
            needles = needle.run(config.needle, inputs.needle, score, progress.advance)
    return {
        "name": config.name,
        "run": config.run,
        "step": step,
        "weights": config.weights,
        "row_tokens": config.row_tokens,
        "context_tokens": model_config.context_tokens,
        "tokenizer_hash": inputs.tokenizer_hash,
        "domains": domains,
        "by_position": by_position,
        "needle": needles,
        "samples": _samples(config, inputs, model_config, params, jax_mesh),
    }


def write(result: dict[str, Any]) -> str:
    """Writes run/eval/<name>.json whole or not at all, from process 0; returns its path."""
    target = str(files.path(result["run"]) / "eval" / f"{result['name']}.json")
    if jax.process_index() == 0:
        files.write_json(target, result)
    return target


def check(
    config: Eval,
    model_config: architecture.TransformerConfig,
    jax_mesh: jax.sharding.Mesh | None = None,
    *,
    tokenizer_hash: str | None = None,
) -> _Inputs:
    """Opens every input and refuses what can't give true numbers.

    Raises:
      FileNotFoundError: no token folder, or no tokenizer.
      ValueError: no documents, no BOS, another tokenizer, a vocabulary that the model doesn't
        have, rows beyond the context, prompts that don't fit, a batch or a row that doesn't divide
        over the mesh, keys that can't be hidden.
    """
    opened = vocabulary.FastTokenizer(path=config.tokenizer, bos_token=None, eos_token=None).open()
    tokenizer, facts = opened.tokenizer, opened.facts
    if facts["vocab_size"] > model_config.vocab_size:
        raise ValueError(
            f"The tokenizer in {config.tokenizer!r} has {facts['vocab_size']} tokens, the model "
            f"of {config.run!r} has {model_config.vocab_size}. Give the tokenizer it was "
            "trained with."
        )
    if tokenizer_hash not in (None, facts["tokenizer_hash"]):
        raise ValueError(
            f"The model of {config.run!r} was trained with another tokenizer (sha256 "
            f"{tokenizer_hash[:12]}) than the one in {config.tokenizer!r} (sha256 "
            f"{facts['tokenizer_hash'][:12]}). Give the tokenizer it was trained with."
        )
    if config.row_tokens > model_config.context_tokens:
        raise ValueError(
            f"Eval.row_tokens={config.row_tokens} exceeds the model's context of "
            f"{model_config.context_tokens} tokens. Choose row_tokens that every compared model "
            "can read; Eval.long may go beyond."
        )
    divisor = loss.row_divisor(jax_mesh)
    for name, rows in (("", config), ("long.", config.long)):
        if rows is not None and rows.batch_rows % divisor:
            raise ValueError(
                f"Eval.{name}batch_rows={rows.batch_rows} does not divide over the mesh's "
                f"{divisor} data shards. Choose a multiple of {divisor}."
            )
    _check_context(config, jax_mesh)
    others = [part.source for part in (config.long, config.needle) if part]
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
    return _Inputs(
        sources=sources,
        tokenizer=tokenizer,
        tokenizer_hash=facts["tokenizer_hash"],
        vocab_size=facts["vocab_size"],
        needle=needles,
    )


def _check_context(config: Eval, jax_mesh: jax.sharding.Mesh | None) -> None:
    """Rows that the mesh's `context` splits must divide over it."""
    shards_of_row = 1 if jax_mesh is None else context.shards(jax_mesh.shape)
    for rows in (config, config.long):
        if rows is not None:
            context.order(rows.row_tokens, shards_of_row)


def _source(config: Eval, name: str, tokenizer: dict[str, Any]) -> shards.TokenSource:
    source = shards.TokenSource(str(files.path(config.tokens) / name))
    manifest = source.manifest
    if not len(source):
        raise ValueError(f"Domain {name!r} ({source.folder}) has no documents. Tokenize some.")
    if manifest["tokenizer_hash"] != tokenizer["tokenizer_hash"]:
        raise ValueError(
            f"{source.folder} was tokenized with another tokenizer (sha256 "
            f"{manifest['tokenizer_hash'][:12]}, vocabulary {manifest['vocab_size']}) than "
            f"{config.tokenizer!r} (sha256 {tokenizer['tokenizer_hash'][:12]}, vocabulary "
            f"{tokenizer['vocab_size']}). Tokenize it again, or give the tokenizer of its tokens."
        )
    if manifest["bos_id"] is None:
        raise ValueError(
            f"{source.folder} was tokenized without BOS, so the first token of each text has "
            "nothing to be predicted from. Tokenize held-out text with bos_token set; a model "
            "without one is given its EOS token there."
        )
    return source


def _total_tokens(config: Eval, inputs: _Inputs) -> int:
    pairs = [int((inputs.sources[name].lengths - 1).sum()) for name in config.domains]
    tokens = sum(ceil_div(count, config.row_tokens) * config.row_tokens for count in pairs)
    if config.long:
        plan = config.long.plan(inputs.sources[config.long.source])
        tokens += len(plan) * config.long.row_tokens
    if config.needle:
        tokens += needle.total_tokens(config.needle)
    return tokens


def _samples(
    config: Eval,
    inputs: _Inputs,
    model_config: architecture.TransformerConfig,
    params: Any,
    jax_mesh: jax.sharding.Mesh | None,
) -> list[dict[str, str]]:
    if config.samples is None:
        return []
    manifest = inputs.sources[config.domains[0]].manifest
    said = hf_generation.kept(config.run)
    eos_ids = {manifest["eos_id"], *(said.eos_ids if said else ())} - {None}
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
