# SPDX-License-Identifier: Apache-2.0
"""Hugging Face folders: save and load, a piece at a time, without torch and without pickle.

    (config, params) --save--> config.json, *.safetensors --load--> (config, params on a mesh)

`families` says what the tensors are called and what config.json means. On the way in no more than
one tensor is in host memory, on the way out a few pieces of one.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

import jax

from midjax import files, log
from midjax.model import architecture, hf_arrays, hf_rows, tensor_files, transformer
from midjax.model import remat as remat_lib
from midjax.model.families import registry, table

# Models that wrap a language model: model_type -> the part of config.json that describes it, and
# the prefix of its tensors. Only that part is read.
_WRAPPED: Mapping[str, tuple[str, str]] = {"gemma3": ("text_config", "language_model.")}


# ---- config.json ----


def config_to_hf(
    config: architecture.TransformerConfig,
    *,
    dtype: architecture.Dtype | None = None,
    ids: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of config.json, for the family that `config.family` names.

    Args:
      config: the model.
      dtype: of the saved tensors; the parameters' own if None.
      ids: "bos_token_id", "eos_token_id", "pad_token_id": a number, a list or None. What is not
        given is written as null: left out, transformers would assume 1 and 2.

    Raises:
      ValueError: the family has no key for something that the config says.
    """
    dtype = dtype or config.param_dtype
    return table.write(registry.family(config.family), config) | {
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **(ids or {}),
        "use_cache": True,
        # The key's name in transformers 4, and in 5.
        "torch_dtype": dtype,
        "dtype": dtype,
    }


def config_from_hf(
    theirs: Mapping[str, Any],
    *,
    param_dtype: architecture.Dtype = "float32",
    compute_dtype: architecture.Dtype = "float32",
    remat: remat_lib.Remat = "none",
    loss_chunk_tokens: int | None = None,
) -> architecture.TransformerConfig:
    """Our config of the content of a config.json.

    Args:
      theirs: the content.
      param_dtype, compute_dtype, remat: see `TransformerConfig`; config.json does not hold them.
      loss_chunk_tokens: as there; None is the context's length.

    Raises:
      ValueError: a model type, flag or rotary embedding that is not supported.
    """
    own, _ = language_model(theirs)
    return table.read(
        registry.family(own.get("model_type")),
        own,
        param_dtype=param_dtype,
        compute_dtype=compute_dtype,
        remat=remat,
        loss_chunk_tokens=loss_chunk_tokens,
    )


def read_config(folder: str) -> architecture.TransformerConfig:
    """The config of a folder whose weights can be loaded; no tensor is read.

    Raises:
      FileNotFoundError: no such folder, or no config.json or weights in it.
      ValueError: something in it is not supported.
    """
    if "://" in folder:
        raise ValueError(f"{folder}: weights are read from a local folder. Copy it here first.")
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder} is not a folder. Name a local Hugging Face folder.")
    if not os.path.exists(os.path.join(folder, "config.json")):
        raise FileNotFoundError(f"{folder} holds no config.json: not a Hugging Face folder.")
    theirs = files.read_json(os.path.join(folder, "config.json"))
    # Before anything else: the name says most.
    registry.family(language_model(theirs)[0].get("model_type"))
    tensor_files.weight_files(folder)
    return config_from_hf(theirs)


def language_model(theirs: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The language model's config.json, and the prefix of its tensors."""
    key, prefix = _WRAPPED.get(str(theirs.get("model_type")), ("", ""))
    if key and isinstance(theirs.get(key), dict):
        return theirs[key], prefix
    return theirs, ""


# ---- saving ----


def save(
    folder: str,
    config: architecture.TransformerConfig,
    params: transformer.Params,
    dtype: architecture.Dtype,
    *,
    ids: Mapping[str, Any] | None = None,
    max_shard_bytes: int = tensor_files.MAX_SHARD_BYTES,
) -> None:
    """Writes config.json and the weights; a few pieces of a tensor are in host memory.

    Args:
      folder: made if missing; weights of another layout in it are refused.
      config, params: the model. Every shard of the parameters must be on this process.
      dtype: of the saved tensors (rounded to nearest even).
      ids: token ids for config.json; see `config_to_hf`.
      max_shard_bytes: a file holds at most this much.
    """
    if dtype not in tensor_files.NUMPY:
        raise ValueError(f"dtype is {dtype!r}; allowed: {', '.join(tensor_files.NUMPY)}.")
    _check_params(config, params)
    theirs = config_to_hf(config, dtype=dtype, ids=ids)
    target = files.path(folder)
    target.mkdir(parents=True, exist_ok=True)
    found = {p.name for p in target.iterdir() if ".safetensors" in p.name}
    named = [
        tensor_files.Named(
            tensor.name, tensor.shape, functools.partial(hf_rows.theirs, tensor, params)
        )
        for tensor in table.tensors(registry.family(config.family), config)
    ]
    if others := found - {tensor_files.SINGLE}:
        raise ValueError(
            f"{folder} already holds {', '.join(sorted(others)[:3])}: readers would mix them up "
            "with what is to be written. Choose an empty folder."
        )
    written = tensor_files.write_shards(folder, named, dtype, max_shard_bytes=max_shard_bytes)
    if tensor_files.SINGLE not in written:
        (target / tensor_files.SINGLE).unlink(missing_ok=True)
    files.write_json(target / "config.json", theirs)


def _check_params(config: architecture.TransformerConfig, params: transformer.Params) -> None:
    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        flat = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {jax.tree_util.keystr(k, simple=True, separator="/"): v.shape for k, v in flat}

    want, have = shapes(transformer.abstract(config)), shapes(params)
    if want != have:
        wrong = sorted(k for k in want.keys() | have.keys() if want.get(k) != have.get(k))
        raise ValueError(
            "The parameters don't fit the config: "
            + "; ".join(f"{k} is {have.get(k)}, must be {want.get(k)}" for k in wrong[:5])
            + ". Give the config that the parameters were made with."
        )


# ---- loading ----


def load(
    folder: str,
    *,
    targets: transformer.Params | None = None,
    compute_dtype: architecture.Dtype = "float32",
    remat: remat_lib.Remat = "none",
    loss_chunk_tokens: int | None = None,
) -> tuple[architecture.TransformerConfig, transformer.Params]:
    """Reads config.json and the safetensors of a local folder.

    Args:
      folder: a Hugging Face folder; one file or many with an index.
      targets: the tree of `transformer.abstract` with the dtype and sharding of each array; each
        device's part is read for itself. None: on the default device, in the file's precision:
        float32 (also for float16 and for a mix), or bfloat16.
      compute_dtype, remat, loss_chunk_tokens: see `config_from_hf`.

    Returns:
      The config, and parameters.

    Raises:
      FileNotFoundError: no such folder, or no config.json or weights in it.
      ValueError: something in it is not supported or does not fit.
    """
    found = read_config(folder)
    _, prefix = language_model(files.read_json(os.path.join(folder, "config.json")))
    with tensor_files.opened(folder) as whole:
        reader = whole.under(prefix)
        if left := len(whole.names) - len(reader.names):
            log.say(f"{folder}: {left} tensors outside of {prefix}* are left out")
        needed = [n for n in reader.names if not n.endswith(table.IGNORED_SUFFIXES)]
        dtype: Any = reader.dtype(needed)
        if targets is not None:
            dtype = jax.tree.leaves(targets)[0].dtype.name
        config = dataclasses.replace(
            found,
            param_dtype=dtype,
            compute_dtype=compute_dtype,
            remat=remat,
            loss_chunk_tokens=loss_chunk_tokens or found.loss_chunk_tokens,
        )
        tensors = list(table.tensors(registry.family(config.family), config))
        check_tensors(config, tensors, reader)
        if targets is None:
            here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            targets = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
                transformer.abstract(config),
            )
        return config, hf_arrays.filled(tensors, targets, reader)


def check_tensors(
    config: architecture.TransformerConfig,
    tensors: list[table.Tensor],
    reader: tensor_files.Reader,
) -> None:
    """Every tensor that the config asks for is there with its shape, and no other."""
    wanted = {tensor.name for tensor in tensors}
    have = {name for name in reader.names if not name.endswith(table.IGNORED_SUFFIXES)}
    head, embed = table.ENDS["head"], table.ENDS["embed"]
    if config.tied_head and head in have and embed in have:
        have.remove(head)
        if not reader.equal(head, embed):
            raise ValueError(
                f"config.json says tie_word_embeddings, but {head} differs from {embed}. "
                "Set tie_word_embeddings to false to use both."
            )
    missing, unknown = sorted(wanted - have), sorted(have - wanted)
    if missing or unknown:
        raise ValueError(
            f"The tensors don't fit config.json: {len(missing)} missing {missing[:3]}, "
            f"{len(unknown)} unknown {unknown[:3]}. Is it the config.json of these weights?"
        )
    for tensor in tensors:
        found = reader.shape(tensor.name)
        if found != tensor.shape:
            raise ValueError(
                f"{tensor.name} has shape {found}; config.json asks for {tensor.shape}."
            )
