# SPDX-License-Identifier: Apache-2.0
"""Hugging Face folders: save and load, a piece at a time, without torch and without pickle.

    (config, params) --save--> config.json, *.safetensors --load--> (config, params on a mesh)

`families` says what the tensors are called and what config.json means. On the way in no more than
one device's part of one tensor is in host memory, on the way out one tensor.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from midjax import files, log
from midjax.model import architecture, tensor_files, transformer
from midjax.model import remat as remat_lib
from midjax.model.families import registry, table

# Models that wrap a language model: model_type -> the part of config.json that describes it, and
# the prefix of its tensors. Only that part is read.
_WRAPPED: Mapping[str, tuple[str, str]] = {"gemma3": ("text_config", "language_model.")}
# Rows are read in pieces of this size, so that a tensor and its conversion are never both whole.
_PIECE_BYTES = 1 << 25


# ---- config.json ----


def config_to_hf(
    config: architecture.TransformerConfig,
    *,
    dtype: architecture.Dtype | None = None,
    bos_id: int | None = None,
    eos_id: int | None = None,
) -> dict[str, Any]:
    """The content of config.json, for the family that `config.family` names.

    Args:
      config: the model.
      dtype: of the saved tensors; the parameters' own if None.
      bos_id, eos_id: written as null if None: left out, transformers would assume 1 and 2.

    Raises:
      ValueError: the family has no key for something that the config says.
    """
    dtype = dtype or config.param_dtype
    return table.write(registry.family(config.family), config) | {
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "pad_token_id": None,
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
    return table.read(
        registry.family(theirs.get("model_type")),
        theirs,
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
    theirs, _ = _language_model(files.read_json(os.path.join(folder, "config.json")))
    registry.family(theirs.get("model_type"))  # before anything else: the name says most
    tensor_files.weight_files(folder)
    return config_from_hf(theirs)


def _language_model(theirs: dict[str, Any]) -> tuple[dict[str, Any], str]:
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
    bos_id: int | None = None,
    eos_id: int | None = None,
    max_shard_bytes: int = tensor_files.MAX_SHARD_BYTES,
) -> None:
    """Writes config.json and the weights; one tensor at a time is in host memory.

    Args:
      folder: made if missing; weights of another layout in it are refused.
      config, params: the model. Every shard of the parameters must be on this process.
      dtype: of the saved tensors (rounded to nearest even).
      bos_id, eos_id: token ids for config.json.
      max_shard_bytes: a file holds at most this much.
    """
    if dtype not in tensor_files.NUMPY:
        raise ValueError(f"dtype is {dtype!r}; allowed: {', '.join(tensor_files.NUMPY)}.")
    _check_params(config, params)
    theirs = config_to_hf(config, dtype=dtype, bos_id=bos_id, eos_id=eos_id)
    target = files.path(folder)
    target.mkdir(parents=True, exist_ok=True)
    found = {p.name for p in target.iterdir() if ".safetensors" in p.name}
    named = [
        tensor_files.Named(tensor.name, tensor.shape, functools.partial(_made, tensor, params))
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


def _made(tensor: table.Tensor, params: transformer.Params) -> np.ndarray:
    """A tensor of theirs from the parameters."""
    pieces = []
    for part in tensor.parts:
        array = np.asarray(_leaf(params, part.path)[part.index])
        if part.input_axes:
            array = array.reshape(part.their_shape[::-1]).T
        pieces.append(array.reshape(part.their_shape))
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _leaf(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


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
    _, prefix = _language_model(files.read_json(os.path.join(folder, "config.json")))
    with tensor_files.opened(folder) as whole:
        reader = whole.under(prefix)
        if left := len(whole.names) - len(reader.names):
            log.say(f"{folder}: {left} tensors outside of {prefix}* are left out")
        dtype: Any = reader.dtype
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
        _check_tensors(config, tensors, reader)
        if targets is None:
            here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            targets = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
                transformer.abstract(config),
            )
        return config, _filled(tensors, targets, reader)


def _check_tensors(
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


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a part of ours lies: the first row of a tensor of theirs."""

    name: str
    first_row: int
    part: table.Part


def _filled(
    tensors: list[table.Tensor], targets: transformer.Params, reader: tensor_files.Reader
) -> transformer.Params:
    """Parameters with the shardings of `targets`, a part at a time."""
    places: dict[tuple[str, ...], list[_Place]] = {}
    for tensor in tensors:
        row = 0
        for part in tensor.parts:
            places.setdefault(part.path, []).append(_Place(tensor.name, row, part))
            row += part.their_shape[0]
    return jax.tree_util.tree_map_with_path(
        lambda path, target: _one(places[tuple(key.key for key in path)], target, reader), targets
    )


def _one(places: list[_Place], target: Any, reader: tensor_files.Reader) -> jax.Array:
    """One of our arrays, stacked over its parts."""
    first = places[0].part
    if not first.index:
        return _on_devices(
            target.shape, target, lambda index: _read(places[0], index, target, reader)
        )
    by_index = {place.part.index: place for place in places}
    # Parts that one device holds whole are put in one by one; where the experts themselves are
    # split, each device gets its own experts of a layer.
    fixed = len(first.index) if not _splits(target, len(first.index)) else 1
    stack = jax.jit(lambda: jnp.zeros(target.shape, target.dtype), out_shardings=target.sharding)()
    put = jax.jit(
        lambda stack, part, index: jax.lax.dynamic_update_slice(
            stack, part.reshape((1,) * fixed + part.shape), (*index, *(0,) * (stack.ndim - fixed))
        ),
        donate_argnums=0,
        out_shardings=target.sharding,
    )
    for index in sorted({index[:fixed] for index in by_index}):

        def piece(within: tuple[slice, ...], index: tuple[int, ...] = index) -> np.ndarray:
            if fixed == len(first.index):
                return _read(by_index[index], within, target, reader)
            experts = range(*within[0].indices(target.shape[1]))
            return np.stack(
                [_read(by_index[(*index, e)], within[1:], target, reader) for e in experts]
            )

        part = _on_devices(target.shape[fixed:], _inner(target, fixed), piece)
        stack = put(stack, part, tuple(np.int32(i) for i in index))
        # Otherwise the host would run ahead and hold many parts at a time.
        stack.block_until_ready()
    return stack


def _splits(target: Any, axes: int) -> bool:
    """Whether one of the first axes of an array is split over devices."""
    part = target.sharding.shard_shape(target.shape)
    return any(part[axis] != target.shape[axis] for axis in range(axes))


def _inner(target: Any, axes: int) -> Any:
    """The target without its first axes, which are not split."""
    sharding = target.sharding
    if isinstance(sharding, jax.sharding.NamedSharding):
        spec = jax.sharding.PartitionSpec(*tuple(sharding.spec)[axes:])
        sharding = jax.sharding.NamedSharding(sharding.mesh, spec)
    return jax.ShapeDtypeStruct(target.shape[axes:], target.dtype, sharding=sharding)


def _on_devices(shape: tuple[int, ...], target: Any, make: Any) -> jax.Array:
    """An array whose parts are made and sent to their devices one after another."""
    arrays: list[jax.Array] = []
    made: np.ndarray | None = None
    last: Any = None
    for device, index in target.sharding.addressable_devices_indices_map(shape).items():
        here = tuple(s.indices(n) for s, n in zip(index, shape, strict=True))
        if made is None or here != last:  # copies of a part mostly follow each other
            made, last = None, here  # the old one goes before the new one comes
            made = make(index)
        arrays.append(jax.device_put(made, device).block_until_ready())
    return jax.make_array_from_single_device_arrays(shape, target.sharding, arrays)


def _read(
    place: _Place, index: tuple[slice, ...], target: Any, reader: tensor_files.Reader
) -> np.ndarray:
    """A slice of one of our arrays (of a layer, of an expert), in the target's dtype."""
    part = place.part
    ranges = [range(*s.indices(n)) for s, n in zip(index, part.shape, strict=True)]
    out = np.empty([len(r) for r in ranges], target.dtype)
    if not part.input_axes:
        # Vectors are flat there; the embedding's rows are rows.
        if part.path == ("embed",):
            _copy_rows(place, ranges[0], slice(ranges[1].start, ranges[1].stop), out, reader)
            return out
        whole = reader.rows(place.name, place.first_row, place.first_row + part.their_shape[0])
        out[...] = whole.reshape(part.shape)[index]
        return out
    # Rows there are our last axes, columns our first: of each group only the first may be split.
    inner = part.input_axes
    rows_per = math.prod(part.shape[inner + 1 :])
    columns_per = math.prod(part.shape[1:inner])
    assert all(len(ranges[i]) == part.shape[i] for i in range(len(ranges)) if i not in (0, inner))
    rows = range(ranges[inner].start * rows_per, ranges[inner].stop * rows_per)
    across = slice(ranges[0].start * columns_per, ranges[0].stop * columns_per)
    _copy_rows(place, rows, across, out.reshape(across.stop - across.start, len(rows)).T, reader)
    return out


def _copy_rows(
    place: _Place,
    rows: range,
    columns: slice,
    out: np.ndarray,
    reader: tensor_files.Reader,
) -> None:
    """Copies rows of a matrix in pieces, converting on the way."""
    step = max(1, _PIECE_BYTES // (4 * place.part.their_shape[1]))
    for at in range(0, len(rows), step):
        begin = place.first_row + rows.start + at
        end = min(begin + step, place.first_row + rows.stop)
        out[at : at + end - begin] = reader.rows(place.name, begin, end)[:, columns]
