# SPDX-License-Identifier: Apache-2.0
"""Hugging Face folders: save and load, tensor by tensor, without torch and without pickle.

(config, params) --save--> config.json, model.safetensors --load--> (config, params)
"""

import contextlib
import dataclasses
import json
import math
import os
import struct
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Literal

import jax
import ml_dtypes
import numpy as np
import safetensors

from midjax import files
from midjax.model import transformer
from midjax.model.families import llama

FAMILIES = {"llama": llama}

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_NUMPY = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_CODES = {"float32": "F32", "bfloat16": "BF16"}
# float16 fits into float32 exactly.
_PARAM_DTYPE = {"F32": "float32", "F16": "float32", "BF16": "bfloat16"}


def _family(theirs: Mapping[str, Any]) -> Any:
    kind = theirs.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(
            f"Model type {kind!r} is not supported; supported: {', '.join(FAMILIES)}. "
            "A new family is one module in midjax/model/families/."
        )
    return FAMILIES[kind]


def config_to_hf(
    config: transformer.TransformerConfig,
    *,
    dtype: transformer.Dtype | None = None,
    bos_id: int | None = None,
    eos_id: int | None = None,
) -> dict[str, Any]:
    """The content of config.json.

    Args:
      config: the model.
      dtype: of the saved tensors; the parameters' own if None.
      bos_id, eos_id: written as null if None: left out, transformers would assume 1 and 2.
    """
    dtype = dtype or config.param_dtype
    return llama.config_to_hf(config) | {
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "use_cache": True,
        # The key's name in transformers 4, and in 5.
        "torch_dtype": dtype,
        "dtype": dtype,
    }


def config_from_hf(
    theirs: Mapping[str, Any],
    *,
    param_dtype: transformer.Dtype = "float32",
    compute_dtype: transformer.Dtype = "float32",
    remat: Literal["none", "full", "dots"] = "none",
    loss_chunk_tokens: int | None = None,
) -> transformer.TransformerConfig:
    """Our config of the content of a config.json.

    Args:
      theirs: the content.
      param_dtype, compute_dtype, remat: see `TransformerConfig`; config.json does not hold them.
      loss_chunk_tokens: as there; None is the context's length.

    Raises:
      ValueError: a model type, flag or rotary embedding that is not supported.
    """
    return _family(theirs).config_from_hf(
        theirs,
        param_dtype=param_dtype,
        compute_dtype=compute_dtype,
        remat=remat,
        loss_chunk_tokens=loss_chunk_tokens,
    )


def _leaf(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _their_shape(ours: tuple[int, ...], inner: int) -> tuple[int, ...]:
    return (math.prod(ours[inner:]), math.prod(ours[:inner])) if inner else ours


def _our_shapes(config: transformer.TransformerConfig) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Path -> shape of one layer's array."""
    tree = transformer.abstract(config)
    flat = {("layers", name): leaf.shape[1:] for name, leaf in tree.pop("layers").items()}
    return flat | {(name,): leaf.shape for name, leaf in tree.items()}


def _check_params(config: transformer.TransformerConfig, params: transformer.Params) -> None:
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


def _write_tensors(
    file: BinaryIO,
    config: transformer.TransformerConfig,
    params: transformer.Params,
    dtype: transformer.Dtype,
) -> None:
    """The safetensors format: 8 bytes of header length, a JSON header, then the tensors."""
    table, shapes = llama.names(config), _our_shapes(config)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (path, _) in table.items():
        shape = _their_shape(shapes[path], llama.inner_axes(path))
        begin, end = end, end + math.prod(shape) * _NUMPY[dtype].itemsize
        header[name] = {
            "dtype": _CODES[dtype],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
    file.write(struct.pack("<Q", len(text)) + text)
    for path, layer in table.values():
        leaf = _leaf(params, path)
        array = np.asarray(leaf if layer is None else leaf[layer])
        inner = llama.inner_axes(path)
        if inner:
            array = array.reshape(math.prod(array.shape[:inner]), -1).T
        file.write(np.ascontiguousarray(array.astype(_NUMPY[dtype])).tobytes())


def save(
    folder: str,
    config: transformer.TransformerConfig,
    params: transformer.Params,
    dtype: transformer.Dtype,
    *,
    bos_id: int | None = None,
    eos_id: int | None = None,
) -> None:
    """Writes config.json and model.safetensors; one tensor at a time is in host memory.

    Args:
      folder: made if missing; weights of another layout in it are refused.
      config, params: the model. Every shard of the parameters must be on this process.
      dtype: of the saved tensors (rounded to nearest even).
      bos_id, eos_id: token ids for config.json.
    """
    if dtype not in _NUMPY:
        raise ValueError(f"dtype is {dtype!r}; allowed: {', '.join(_NUMPY)}.")
    _check_params(config, params)
    theirs = config_to_hf(config, dtype=dtype, bos_id=bos_id, eos_id=eos_id)
    target = files.path(folder)
    target.mkdir(parents=True, exist_ok=True)
    others = [p.name for p in target.iterdir() if ".safetensors" in p.name and p.name != _WEIGHTS]
    if others:
        raise ValueError(
            f"{folder} already holds {', '.join(sorted(others)[:3])}: readers would mix them up "
            f"with {_WEIGHTS}. Choose an empty folder."
        )
    temporary = target / f".{_WEIGHTS}.{uuid.uuid4().hex}"
    try:
        with temporary.open("wb") as file:
            _write_tensors(file, config, params, dtype)
        temporary.replace(target / _WEIGHTS)
    finally:
        temporary.unlink(missing_ok=True)
    files.write_json(target / "config.json", theirs)


def _weight_files(folder: str) -> list[str]:
    """The safetensors files of a folder.

    Raises:
      FileNotFoundError: there are none.
      ValueError: the weights are pickles, or a listed file is missing.
    """
    if os.path.exists(os.path.join(folder, _INDEX)):
        index = files.read_json(os.path.join(folder, _INDEX))
        found = sorted({os.path.join(folder, name) for name in index["weight_map"].values()})
        missing = [name for name in found if not os.path.exists(name)]
        if missing:
            raise ValueError(f"{_INDEX} lists {', '.join(missing)}, which is not there.")
        return found
    if os.path.exists(os.path.join(folder, _WEIGHTS)):
        return [os.path.join(folder, _WEIGHTS)]
    pickles = sorted(n for n in os.listdir(folder) if n.endswith((".bin", ".pt", ".pth")))
    if pickles:
        raise ValueError(
            f"{folder} holds its weights as pickles ({', '.join(pickles[:3])}), which can run code "
            "when read; midjax reads safetensors only. Convert it where torch and transformers "
            'are installed: python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained({folder!r}).save_pretrained('converted')\""
        )
    raise FileNotFoundError(f"{folder} holds neither {_WEIGHTS} nor {_INDEX}.")


@contextlib.contextmanager
def _opened(names: list[str]) -> Iterator[dict[str, Any]]:
    """Tensor name -> open file that holds it."""
    with contextlib.ExitStack() as stack:
        holders: dict[str, Any] = {}
        for name in names:
            try:
                file = stack.enter_context(safetensors.safe_open(name, framework="numpy"))
            except safetensors.SafetensorError as error:
                raise ValueError(
                    f"{name} is damaged or no safetensors file: {error}. Fetch it again."
                ) from error
            holders |= dict.fromkeys(file.keys(), file)
        yield holders


def _param_dtype(holders: Mapping[str, Any]) -> transformer.Dtype:
    codes = {file.get_slice(name).get_dtype() for name, file in holders.items()}
    if not codes <= set(_PARAM_DTYPE):
        raise ValueError(
            f"Tensors of type {', '.join(sorted(codes - set(_PARAM_DTYPE)))} are not supported; "
            f"supported: {', '.join(_PARAM_DTYPE)}. Quantized weights must be dequantized first."
        )
    return "bfloat16" if codes == {"BF16"} else "float32"


def _check_names(config: transformer.TransformerConfig, holders: Mapping[str, Any]) -> None:
    table, shapes = llama.names(config), _our_shapes(config)
    have = {name for name in holders if not name.endswith(llama.IGNORED_SUFFIXES)}
    head, embed = llama.ENDS["head"][0], llama.ENDS["embed"][0]
    if config.tied_head and head in have and embed in have:
        have.remove(head)
        if not np.array_equal(holders[head].get_tensor(head), holders[embed].get_tensor(embed)):
            raise ValueError(
                f"config.json says tie_word_embeddings, but {head} differs from {embed}. "
                "Set tie_word_embeddings to false to use both."
            )
    missing, unknown = sorted(table.keys() - have), sorted(have - table.keys())
    if missing or unknown:
        raise ValueError(
            f"The tensors don't fit config.json: {len(missing)} missing {missing[:3]}, "
            f"{len(unknown)} unknown {unknown[:3]}. Is it the config.json of these weights?"
        )
    for name, (path, _) in table.items():
        want = _their_shape(shapes[path], llama.inner_axes(path))
        found = tuple(holders[name].get_slice(name).get_shape())
        if found != want:
            raise ValueError(f"{name} has shape {found}; config.json asks for {want}.")


def read_config(folder: str) -> transformer.TransformerConfig:
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
    _family(theirs)  # before anything else: the name says most
    _weight_files(folder)
    return config_from_hf(theirs)


def load(
    folder: str,
    *,
    compute_dtype: transformer.Dtype = "float32",
    remat: Literal["none", "full", "dots"] = "none",
    loss_chunk_tokens: int | None = None,
) -> tuple[transformer.TransformerConfig, transformer.Params]:
    """Reads config.json and the safetensors of a local folder.

    Args:
      folder: a Hugging Face folder; one file or many with an index.
      compute_dtype, remat, loss_chunk_tokens: see `config_from_hf`.

    Returns:
      The config, and parameters as NumPy arrays, so that a caller can put each on its mesh without
      the whole model passing through one device. They keep the file's precision: float32 (also for
      float16 and for a mix), or bfloat16.

    Raises:
      FileNotFoundError: no such folder, or no config.json or weights in it.
      ValueError: something in it is not supported or does not fit.
    """
    found = read_config(folder)
    with _opened(_weight_files(folder)) as holders:
        config = dataclasses.replace(
            found,
            param_dtype=_param_dtype(holders),
            compute_dtype=compute_dtype,
            remat=remat,
            loss_chunk_tokens=loss_chunk_tokens or found.loss_chunk_tokens,
        )
        _check_names(config, holders)
        dtype = _NUMPY[config.param_dtype]
        params = jax.tree.map(
            lambda leaf: np.empty(leaf.shape, dtype), transformer.abstract(config)
        )
        shapes = _our_shapes(config)
        for name, (path, layer) in llama.names(config).items():
            array = holders[name].get_tensor(name)
            if llama.inner_axes(path):
                array = array.T
            target = _leaf(params, path)
            target[... if layer is None else layer] = array.reshape(shapes[path])
    return config, params
