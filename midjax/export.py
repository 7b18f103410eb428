# SPDX-License-Identifier: Apache-2.0
"""The verb `export`: a trained model as a Hugging Face folder that transformers 4 and 5 load.

params + tokenizer folder + lineage --run--> output/  config.json  model.safetensors
                                                      generation_config.json  tokenizer files
                                                      README.md (the model card)
                  then: read every tensor back, compare logits on text

Host memory holds some pieces of a tensor, however large the model; it stays on its devices.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import tokenizers
from jaxtyping import Int

from midjax import export_check, files
from midjax.model import (
    architecture,
    folding,
    hf,
    hf_check,
    hf_generation,
    sharding,
    transformer,
)

# Prose, code and maths, so that most kinds of token occur.
PROMPT = """\
The river had risen in the night, and by morning the lower road was gone. "We shall have to go \
round by the mill," said the carrier, who had seen worse in 1872.

def mean(values: list[float]) -> float:
    return sum(values) / len(values)

Question: A train covers 120 km in 1.5 hours. What is its speed?
Answer: 120 / 1.5 = 80, so its speed is 80 km/h.
"""

_TOKENIZER_NEEDS = ("tokenizer.json", "tokenizer_config.json")
_TOKENIZER_MAY = ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
_SPECIAL = ("bos", "eos", "pad")

# Rounding gives up to about 2e-5. A wrong layout, name or rotary key gives more than 1e-2.
_TOLERANCE = 1e-3
_MOST_TOKENS = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Export a run's checkpoint as a Hugging Face folder.

    Attributes:
      run: the run's folder.
      step: which checkpoint; None is the newest.
      output: the folder to write.
      tokenizer: folder with tokenizer.json and tokenizer_config.json; copied.
      dtype: of the saved tensors: "float32" or "bfloat16".
      mesh: devices that hold the parameters; the model need not fit one of them.
      weights: "params", or "ema", the average that a run with `Train.ema` keeps of them.
    """

    run: str
    step: int | None
    output: str
    tokenizer: str
    dtype: architecture.Dtype
    mesh: sharding.Mesh
    weights: Literal["params", "ema"] = "params"

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"Export.dtype is {self.dtype!r}; allowed: float32, bfloat16.")
        if self.step is not None and self.step < 0:
            raise ValueError(f"Export.step must be 0 or more, or None, got {self.step}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What was written and how it was checked.

    Attributes:
      folder: the Hugging Face folder.
      written: names of the files in it.
      token_ids_from: the folder whose token ids and settings for generation these are, or
        "the tokenizer".
      compared_tensors: how many were read back and are the parameters, rounded, bit for bit: all.
      compared_with, not_compared: who computed the logits, e.g. "transformers 5.23.0", and why it
        was not transformers; see `export_check.Compared`.
      max_difference: largest absolute difference of a logit.
      compared_tokens: tokens of the text compared.
    """

    folder: str
    written: tuple[str, ...]
    token_ids_from: str
    compared_tensors: int
    compared_with: str
    not_compared: str | None
    max_difference: float
    compared_tokens: int


def check(
    config: Export,
    model_config: architecture.TransformerConfig,
    *,
    said: hf_generation.Said | None = None,
    tokenizer_hash: str | None = None,
) -> tuple[tokenizers.Tokenizer, dict[str, int | None]]:
    """All that can be known before the parameters are read.

    Args:
      config, model_config: what is exported.
      said: what the model's first folder said of generation, if it is known.
      tokenizer_hash: of the tokenizer that the model was trained with, as its checkpoint says;
        None where that is not known, which leaves only the vocabulary's size to compare.

    Returns:
      The tokenizer, and {"bos": id, "eos": id, "pad": id} with None where it has none.

    Raises:
      FileNotFoundError: the tokenizer folder lacks a file.
      ValueError: it is not the model's tokenizer, or has no token of an id that `said` has.
    """
    folder, vocab_size = config.tokenizer, model_config.vocab_size
    for name in _TOKENIZER_NEEDS:
        if not files.path(folder).joinpath(name).exists():
            raise FileNotFoundError(
                f"{folder} holds no {name}. Export.tokenizer must be a folder with "
                f"{' and '.join(_TOKENIZER_NEEDS)}."
            )
    found = files.sha256_of(files.path(folder) / "tokenizer.json")
    if tokenizer_hash not in (None, found):
        raise ValueError(
            f"The model of {config.run!r} was trained with another tokenizer (sha256 "
            f"{tokenizer_hash[:12]}) than the one in {folder!r} (sha256 {found[:12]}). Give "
            "Export.tokenizer the one it was trained with."
        )
    text = files.path(folder).joinpath("tokenizer.json").read_text()
    try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises no narrower kind
        raise ValueError(
            f"{folder}/tokenizer.json is not a fast tokenizer: {error}. Fetch it again."
        ) from error
    if tokenizer.get_vocab_size() > vocab_size:
        raise ValueError(
            f"The tokenizer in {folder} has {tokenizer.get_vocab_size()} tokens and the model "
            f"{vocab_size}: it is not the model's tokenizer."
        )
    settings = files.read_json(files.path(folder) / "tokenizer_config.json")
    ids: dict[str, int | None] = {}
    for name in _SPECIAL:
        token = settings.get(f"{name}_token")
        content = token["content"] if isinstance(token, dict) else token
        ids[name] = None if content is None else tokenizer.token_to_id(content)
    if said is not None:
        hf_generation.check(
            said, lambda id_: 0 <= id_ < vocab_size and tokenizer.id_to_token(id_) is not None
        )
    return tokenizer, ids


def prompt_ids(
    tokenizer: tokenizers.Tokenizer, bos_id: int | None, most_tokens: int
) -> Int[np.ndarray, "1 T"]:
    """The ids of `PROMPT` as one row of at most `most_tokens`, BOS first if there is one."""
    ids = tokenizer.encode(PROMPT, add_special_tokens=False).ids
    if bos_id is not None:
        ids = [bos_id, *ids]
    return np.asarray([ids[:most_tokens]], np.int32)


def _for_generation(
    said: hf_generation.Said | None, ids: Mapping[str, int | None]
) -> tuple[dict[str, Any], bytes]:
    """Token ids for config.json, and generation_config.json.

    What the source said counts; where it is silent, or not known, the tokenizer.
    """
    own = {f"{name}_token_id": number for name, number in ids.items()}
    heard = dict(said.ids) if said is not None else {}
    in_config = own | {"pad_token_id": None} | heard
    if said is not None and said.generation is not None:
        return in_config, said.generation
    given = {key: value for key, value in (own | heard).items() if value is not None}
    made = json.dumps({"_from_model_config": True, **given}, indent=1) + "\n"
    return in_config, made.encode()


def _bullets(value: Any, depth: int = 0) -> list[str]:
    """Nested mappings and lists as Markdown bullets."""
    pad = "  " * depth
    items = value.items() if isinstance(value, Mapping) else ((None, item) for item in value)
    out: list[str] = []
    for key, item in items:
        label = "" if key is None else f"{key}: "
        nested = isinstance(item, Mapping) or (
            isinstance(item, Sequence) and not isinstance(item, str)
        )
        if nested and item and key is None:
            # What a nameless item begins with is its heading.
            first, *rest = _bullets(item, depth + 1)
            out += [pad + first.lstrip(), *rest]
        elif nested and item:
            out += [f"{pad}- {label}".rstrip(), *_bullets(item, depth + 1)]
        elif not nested and item is not None:
            out.append(f"{pad}- {label}{item}")
    return out


def _bits(result: Mapping[str, Any]) -> dict[str, float | None]:
    """The bits per byte of an evaluation's domains."""
    return {name: one.get("bits_per_byte") for name, one in result.get("domains", {}).items()}


def _scores(result: Mapping[str, Any]) -> dict[str, float | None]:
    """The primary metric of an evaluation's tasks."""
    found = {}
    for name, task in result.get("tasks", {}).items():
        metric, shots = task["primary"], task["settings"]["shots"]
        label = f"{name}, {metric}, {shots} examples"
        if task["settings"]["limit"]:
            label += f", {task['documents']} documents"
        found[label] = task.get("macro", task["metrics"])[metric]
    return found


def _eval_table(title: str, columns: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """{evaluation: {what: value}} as one table, of the evaluations that have a value."""
    columns = {name: values for name, values in columns.items() if values}
    if not columns:
        return []
    rows = [f"| {title} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for what in sorted({what for values in columns.values() for what in values}):
        cells = []
        for values in columns.values():
            value = values.get(what)
            told = "" if what not in values else "not finite" if value is None else f"{value:.4f}"
            cells.append(told)
        rows.append(f"| {what} | " + " | ".join(cells) + " |")
    return [*rows, ""]


def model_card(
    config: Export, model_config: architecture.TransformerConfig, lineage: Mapping[str, Any]
) -> str:
    """README.md: what the model is, where it comes from, what it scored.

    Args:
      config, model_config: what is exported.
      lineage: anything that nests mappings, lists and scalars: source checkpoint, recipe, mixture
        asked and seen, ... "name" is the title, "license" goes to the header, and "evals"
        ({name: content of eval/<name>.json}) becomes two tables, of domains and of tasks.
    """
    rest = {k: v for k, v in lineage.items() if k not in ("name", "license", "evals")}
    header = ["library_name: transformers", "pipeline_tag: text-generation", "tags:", "- midjax"]
    if lineage.get("license"):
        header.append(f"license: {lineage['license']}")
    name = lineage.get("name") or os.path.basename(config.run.rstrip("/"))
    count = transformer.parameter_count(model_config)
    shape = {
        "parameters": f"{count:,}",
        "layers": model_config.layers,
        "width": model_config.dim,
        "heads": f"{model_config.heads} (keys and values: {model_config.kv_heads})",
        "vocabulary": model_config.vocab_size,
        "context": f"{model_config.context_tokens} tokens",
        "rotary embedding": f"theta {model_config.rope.theta:g}, scaling "
        f"{model_config.rope.scaling.kind}",
        "tensors": config.dtype,
    }
    step = "newest checkpoint" if config.step is None else f"step {config.step}"
    out = ["---", *header, "---", "", f"# {name}", ""]
    kind = f"A language model of type {model_config.family}, trained with midjax"
    what = ", the moving average of its parameters" if config.weights == "ema" else ""
    out += [f"{kind} (run `{config.run}`, {step}{what}).", ""]
    out += ["It is a base model: it continues text and was not taught to follow instructions.", ""]
    out += ["## Shape", "", *_bullets(shape), ""]
    if rest:
        out += ["## Lineage", "", *_bullets(rest), ""]
    evals = lineage.get("evals") or {}
    bits = _eval_table("bits per byte", {name: _bits(one) for name, one in evals.items()})
    scores = _eval_table("task", {name: _scores(one) for name, one in evals.items()})
    out += ["## Evaluation on held-out text", "", *bits] if bits else []
    out += ["## Evaluation on tasks", "", *scores] if scores else []
    return "\n".join(out)


def run(
    config: Export,
    model_config: architecture.TransformerConfig,
    params: transformer.Params,
    lineage: Mapping[str, Any],
    *,
    said: hf_generation.Said | None = None,
    tokenizer_hash: str | None = None,
    token_ids: Int[np.ndarray, "B T"] | None = None,
) -> ExportResult:
    """Writes the folder, reads it back, and compares numbers and logits.

    Args:
      config: where to and how.
      model_config, params: the model, on `config.mesh`; no optimizer state.
      lineage: for the model card; see `model_card`.
      said, tokenizer_hash: see `check`.
      token_ids: text to compare on; `PROMPT` if None.

    Raises:
      FileNotFoundError: the tokenizer folder lacks a file.
      ValueError: the tokenizer does not fit the model, or the shape can't be exported.
      RuntimeError: the folder, read back, holds or computes something else.
    """
    tokenizer, ids = check(config, model_config, said=said, tokenizer_hash=tokenizer_hash)
    model_config, params = folding.fold(model_config, params)
    in_config, generation = _for_generation(said, ids)
    hf.save(config.output, model_config, params, config.dtype, ids=in_config)
    target = files.path(config.output)
    files.write_bytes(target / hf_generation.GENERATION, generation)
    for name in (*_TOKENIZER_NEEDS, *_TOKENIZER_MAY):
        source = files.path(config.tokenizer) / name
        if source.exists():
            files.write_bytes(target / name, source.read_bytes())
    files.write_text(target / "README.md", model_card(config, model_config, lineage))

    tensors = hf_check.same_bits(config.output, model_config, params, config.dtype)
    if token_ids is None:
        most = min(model_config.context_tokens, _MOST_TOKENS)
        token_ids = prompt_ids(tokenizer, ids["bos"], most)
    mesh = sharding.make(config.mesh)
    compared = export_check.logits(
        config.output, model_config, params, config.dtype, token_ids, mesh
    )
    if not compared.difference <= _TOLERANCE:
        raise RuntimeError(
            f"{config.output}, read back with {compared.reader}, computes other logits: the "
            f"largest difference is {compared.difference:.3g}, allowed is {_TOLERANCE}. Do not use "
            "the folder."
        )
    return ExportResult(
        folder=config.output,
        written=tuple(sorted(p.name for p in target.iterdir())),
        token_ids_from="the tokenizer" if said is None else said.place,
        compared_tensors=tensors,
        compared_with=compared.reader,
        not_compared=compared.why_not,
        max_difference=compared.difference,
        compared_tokens=int(token_ids.size),
    )
