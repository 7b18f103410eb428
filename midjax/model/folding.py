# SPDX-License-Identifier: Apache-2.0
"""Factors of a model into its weights, for formats that have no key for them.

    (config, params) --fold--> (config, params) that compute the same

For an export only. In training a factor in the weights is another trajectory under Adam, which is
why the config has fields for what MaxText leaves outside of them.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from midjax.model import architecture, transformer

# Families that say at what scale scores are, and whose norms add 1 to their weight.
_GEMMA = ("gemma2", "gemma3_text")


def fold(
    config: architecture.TransformerConfig, params: transformer.Params
) -> tuple[architecture.TransformerConfig, transformer.Params]:
    """The same model with its factors where `config.family` has them in a Hugging Face folder.

    attention_scale goes into the queries (their norm's weight where they are normed), but for
    Gemma, which has a key for it. logits_scale goes into the head; a tied head with its embedding,
    which Gemma makes up for by embed_scale, and the others by a head of its own. Norms of Gemma get
    weights that are added to 1. head_dtype is dropped.

    Raises:
      ValueError: queries are clipped, so that no factor can be put before it.
    """
    ends, layers = dict(params), dict(params["layers"])
    gemma = config.family in _GEMMA
    if config.attention_scale is not None and not gemma:
        config, layers = _queries(config, layers)
    if config.logits_scale is not None:
        config, ends = _head(config, ends, gemma)
    if gemma and config.norm == "rms":
        ends, layers = _plus_one(ends), _plus_one(layers)
        config = dataclasses.replace(config, norm="rms_plus_one")
    return dataclasses.replace(config, head_dtype=None), ends | {"layers": layers}


def _queries(
    config: architecture.TransformerConfig, layers: dict[str, Any]
) -> tuple[architecture.TransformerConfig, dict[str, Any]]:
    assert config.attention_scale is not None
    factor = config.attention_scale * math.sqrt(config.head_dim)
    config = dataclasses.replace(config, attention_scale=None)
    if math.isclose(factor, 1.0, rel_tol=1e-6):
        return config, layers
    if config.clip_qkv is not None:
        raise ValueError(
            f"TransformerConfig.clip_qkv = {config.clip_qkv} with an attention_scale that is not "
            "1 / sqrt(head_dim): no Hugging Face folder can hold both."
        )
    if config.qk_norm != "none":
        added = 1.0 if config.norm == "rms_plus_one" else 0.0
        changed = {"q_norm": _times(layers["q_norm"], factor, added)}
    else:
        names = [name for name in ("wq", "q_bias") if name in layers]
        changed = {name: _times(layers[name], factor) for name in names}
    return config, layers | changed


def _head(
    config: architecture.TransformerConfig, ends: dict[str, Any], gemma: bool
) -> tuple[architecture.TransformerConfig, dict[str, Any]]:
    scale = config.logits_scale
    assert scale is not None
    config = dataclasses.replace(config, logits_scale=None)
    if not config.tied_head:
        return config, ends | {"head": _times(ends["head"], scale)}
    if gemma and math.isclose((config.embed_scale or 1.0) / scale, math.sqrt(config.dim)):
        config = dataclasses.replace(config, embed_scale=math.sqrt(config.dim))
        return config, ends | {"embed": _times(ends["embed"], scale)}
    config = dataclasses.replace(config, tied_head=False)
    return config, ends | {"head": _times(ends["embed"], scale).T}


def _times(array: Any, factor: float, added: float = 0.0) -> jax.Array:
    """(array + added) * factor - added, in float32 and back."""
    wide = jnp.asarray(array).astype(jnp.float32)
    return ((wide + added) * factor - added).astype(array.dtype)


def _plus_one(tree: dict[str, Any]) -> dict[str, Any]:
    """Weights of norms as they are added to 1."""
    return {
        name: (leaf.astype(jnp.float32) - 1.0).astype(leaf.dtype) if name.endswith("norm") else leaf
        for name, leaf in tree.items()
    }
