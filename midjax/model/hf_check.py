# SPDX-License-Identifier: Apache-2.0
"""Whether a folder holds a model's numbers: read back as an import reads, compared bit by bit.

    folder --hf_arrays.slices--> our layout ==? our layout <--hf_rows.ours-- parameters, rounded

Reading and writing share no code that rearranges numbers, so an error in one is not one in both.
"""

import numpy as np

from midjax import files
from midjax.model import architecture, hf, hf_arrays, hf_rows, tensor_files, transformer
from midjax.model.families import registry, table


def same_bits(
    folder: str,
    config: architecture.TransformerConfig,
    params: transformer.Params,
    dtype: architecture.Dtype,
) -> int:
    """Compares every number of a folder with the parameters, rounded on the host.

    Args:
      folder: as `hf.save` wrote it.
      config, params: the model. A few pieces of `hf_rows.PIECE_BYTES` are in host memory.
      dtype: of the folder's tensors.

    Returns:
      How many tensors there are.

    Raises:
      ValueError: a tensor is missing, too many, of another shape, or a file is damaged.
      RuntimeError: a number differs.
    """
    tensors = list(table.tensors(registry.family(config.family), config))
    kind = tensor_files.NUMPY[dtype]
    bits = np.dtype(f"u{kind.itemsize}")
    with tensor_files.opened(folder) as reader:
        hf.check_tensors(config, tensors, reader)
        if (found := reader.dtype(reader.names)) != dtype:
            raise RuntimeError(f"{folder} holds {found}, not {dtype}. Do not use the folder.")
        for path, places in hf_arrays.places(tensors).items():
            array = hf_rows.leaf(params, path)
            for place in places:
                for begin, end in hf_rows.steps(place.part, array.dtype.itemsize):
                    want = hf_rows.ours(array, place.part, begin, end).astype(kind)
                    at = hf_rows.index(place.part, begin, end)
                    (read,) = hf_arrays.slices(place, [at], kind, reader)
                    if not np.array_equal(read.view(bits), want.view(bits)):
                        raise RuntimeError(
                            f"{folder}: {place.name}, read back, is not the model's "
                            f"{'/'.join(path)} {list(place.part.index)}. Do not use the folder."
                        )
    return len(tensors)


def config_of(
    folder: str, config: architecture.TransformerConfig
) -> architecture.TransformerConfig:
    """What a folder's config.json says, with the numerics of `config`, which it does not hold."""
    return hf.config_from_hf(
        files.read_json(files.path(folder) / "config.json"),
        param_dtype=config.param_dtype,
        compute_dtype=config.compute_dtype,
        remat=config.remat,
        loss_chunk_tokens=config.loss_chunk_tokens,
    )
