# SPDX-License-Identifier: Apache-2.0
"""The keys of rotary embeddings in a config.json, of every family and of both versions.

transformers 4 reads `rope_theta` and `rope_scaling`; transformers 5 reads the same two when
`rope_scaling` is not null, else `rope_parameters`. Lengths stand beside them, at the top level. We
write all of them with the same numbers, and read them only if they agree.

Models whose sliding-window layers have a rotary embedding of their own (Gemma 3, OLMo 3) are read
and written as pairs. transformers 5 nests `rope_parameters` by the type of the layer. For
transformers 4 the old keys speak of full attention; window layers are never scaled, and their theta
is `rope_local_base_freq` (Gemma 3) or the same `rope_theta` (OLMo 3).

What has no name there is written as what it amounts to:
  ntk           a theta
  ntk_by_parts  "llama3", the same function with other names for its bounds
  any kind, where the name does not work: "longrope", whose lists can hold any frequencies
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from midjax.model import rope
from midjax.model.families import rope_read

FULL, WINDOW = "full_attention", "sliding_attention"


Dialect = rope_read.Dialect
PLAIN = Dialect()
PHI3 = Dialect(partial=True, longrope_only=True)
# transformers 5 (5.23) takes PhiMoE's short list at every length; 4 and we go by the length.
PHIMOE = Dialect(default_theta=1e6, longrope_only=True, mscales=True)
GEMMA3 = Dialect(default_theta=1e6, window_theta=10_000.0)
OLMO3 = Dialect(default_theta=500_000.0)


# ---- ours to theirs ----


def to_hf(config: rope.Rope, head_dim: int) -> tuple[float, dict[str, Any] | None]:
    """(`rope_theta`, `rope_scaling`): the numbers that make transformers compute our frequencies.

    Lengths and the share of dimensions that turn belong beside them: see `written`.
    """
    rope.check_head_dim(config, head_dim)
    theta, scaling, _ = _expressed(config, head_dim, None, PLAIN)
    return theta, scaling


def written(
    config: rope.Rope, head_dim: int, context_tokens: int, dialect: Dialect = PLAIN
) -> dict[str, Any]:
    """All keys of a rotary embedding, `max_position_embeddings` included, for a config.json.

    Args:
      config: the rotary embedding of all layers.
      head_dim: H.
      context_tokens: `max_position_embeddings`, where the rotary embedding does not decide it.
      dialect: the family's.

    Raises:
      ValueError: transformers 4 or 5 could not compute it with this family.
    """
    rope.check_head_dim(config, head_dim)
    theta, scaling, lengths = _expressed(config, head_dim, context_tokens, dialect)
    lengths = {"max_position_embeddings": context_tokens, **lengths}
    if dialect.longrope_only:
        lengths.setdefault(rope_read.ORIGINAL, lengths["max_position_embeddings"])
    partial = _partial_factor(config, head_dim, dialect)
    return {
        "rope_theta": theta,
        "rope_scaling": scaling,
        "rope_parameters": _parameters(theta, scaling) | partial,
        **lengths,
        **partial,
    }


def pair_written(
    full: rope.Rope,
    window: rope.Rope | None,
    head_dim: int,
    context_tokens: int,
    dialect: Dialect,
) -> dict[str, Any]:
    """`written` for a family whose window layers have a rotary embedding of their own.

    Args:
      full: that of full-attention layers.
      window: that of sliding-window layers; None is `full`.
      head_dim, context_tokens, dialect: see `written`.
    """
    window = window or full
    for one in (full, window):
        rope.check_head_dim(one, head_dim)
        _partial_factor(one, head_dim, dialect)
    if window.scaling.kind not in ("none", "ntk"):
        raise ValueError(
            "transformers 4 never scales the rotary embedding of sliding-window layers: the "
            f"model's is of kind {window.scaling.kind!r}. It can export window_rope of kind 'none' "
            "or 'ntk' only."
        )
    window_theta, _, _ = _expressed(window, head_dim, context_tokens, dialect)
    theta, scaling, lengths = _expressed(full, head_dim, context_tokens, dialect)
    has_own_theta = dialect.window_theta is not None
    # One theta serves both in OLMo 3's old keys. And transformers 5 looks for `truncate` beside the
    # types of layers, not in them.
    if (theta != window_theta and not has_own_theta) or full.scaling.truncate is False:
        theta = theta if has_own_theta else window_theta
        scaling, lengths = _longrope(full, head_dim, context_tokens, dialect, theta)
    return {
        "rope_theta": theta,
        "rope_scaling": scaling,
        **({"rope_local_base_freq": window_theta} if has_own_theta else {}),
        "rope_parameters": {
            FULL: _parameters(theta, scaling),
            WINDOW: _parameters(window_theta, None),
        },
        "max_position_embeddings": context_tokens,
        **lengths,
    }


def _parameters(theta: float, scaling: Mapping[str, Any] | None) -> dict[str, Any]:
    fields = dict(scaling or {})
    kind = fields.pop("type", "default")
    return {"rope_theta": theta, "rope_type": kind, **fields}


def _partial_factor(config: rope.Rope, head_dim: int, dialect: Dialect) -> dict[str, float]:
    dims = rope.turned_dims(config, head_dim)
    if dims == head_dim:
        return {}
    if not dialect.partial:
        raise ValueError(
            f"transformers turns whole heads in this family; the model turns {dims} of "
            f"{head_dim} dimensions (Rope.rotary_dims)."
        )
    factor = dims / head_dim
    if int(head_dim * factor) < dims:
        factor = math.nextafter(factor, 1)  # they cut the product: 69.99... would be 69
    return {"partial_rotary_factor": factor}


def _expressed(
    config: rope.Rope, head_dim: int, context_tokens: int | None, dialect: Dialect
) -> tuple[float, dict[str, Any] | None, dict[str, int]]:
    """`rope_theta`, `rope_scaling`, and lengths that stand beside them."""
    scaling, theta = config.scaling, float(config.theta)
    if scaling.kind == "none":
        return theta, None, {}
    if scaling.kind == "ntk":
        assert scaling.factor is not None
        dims = rope.turned_dims(config, head_dim)
        return rope.ntk_theta(theta, scaling.factor, dims), None, {}
    if dialect.longrope_only or scaling.kind == "longrope":
        return theta, *_longrope(config, head_dim, context_tokens, dialect, theta)
    if scaling.kind == "ntk_by_parts":
        return theta, _named(_as_llama3(scaling)), {}
    found, lengths = _named(scaling), {}
    if scaling.kind == "dynamic_ntk":
        lengths["max_position_embeddings"] = found.pop(rope_read.ORIGINAL)
    elif scaling.kind == "yarn":
        # Some releases of transformers 4 compute the factor as this key over the original length.
        lengths["max_position_embeddings"] = round(found["factor"] * found[rope_read.ORIGINAL])
    return theta, found, lengths


def _as_llama3(scaling: rope.RopeScaling) -> rope.RopeScaling:
    """ntk_by_parts under its other name."""
    return rope.RopeScaling(
        kind="llama3",
        factor=scaling.factor,
        original_context_tokens=scaling.original_context_tokens,
        low_freq_factor=scaling.beta_slow,
        high_freq_factor=scaling.beta_fast,
    )


def _named(scaling: rope.RopeScaling) -> dict[str, Any]:
    theirs, (_, keys) = next(
        (name, row) for name, row in rope_read.KINDS.items() if row[0] == scaling.kind
    )
    found = {key: getattr(scaling, field) for key, field in keys.items()}
    return {"rope_type": theirs} | {key: x for key, x in found.items() if x is not None}


def _longrope(
    config: rope.Rope,
    head_dim: int,
    context_tokens: int | None,
    dialect: Dialect,
    theta: float,
) -> tuple[dict[str, Any], dict[str, int]]:
    """Any rotary embedding as the lists that divide theta's frequencies, and its lengths."""
    scaling, (_, attention_factor) = config.scaling, rope.frequencies(config, head_dim)
    if scaling.kind == "dynamic_ntk":
        raise ValueError(
            "transformers cannot compute this model's rotary embedding: kind 'dynamic_ntk' has "
            "no place in this family's keys. Use 'longrope' or 'ntk'."
        )
    if scaling.kind == "longrope":
        original, factor = scaling.original_context_tokens, scaling.factor
        assert original and factor
        longest = round(factor * original)
    else:
        # One pair of lists for every length: the lengths say "not extended", a factor of 1.
        assert context_tokens is not None
        original = longest = context_tokens
        factor = 1.0
    # transformers 4 goes by the ratio of these two, transformers 5 by the factor if there is one.
    lengths = {"max_position_embeddings": longest, rope_read.ORIGINAL: original}
    implied = 1.0
    if longest > original:
        implied = math.sqrt(1 + math.log(longest / original) / math.log(original))
    is_implied = math.isclose(attention_factor, implied, rel_tol=1e-9)
    lists = {
        "short_factor": _divisors(config, head_dim, theta, original),
        "long_factor": _divisors(config, head_dim, theta, original + 1),
    }
    if dialect.mscales:
        mscales = {
            "short_mscale": attention_factor,
            "long_mscale": scaling.long_attention_factor or attention_factor,
        }
        return {"type": "longrope", **lists, **mscales, rope_read.ORIGINAL: original}, lengths
    if scaling.long_attention_factor is not None:
        raise ValueError(
            "transformers has one attention factor for all lengths in this family; the model has "
            f"long_attention_factor {scaling.long_attention_factor}."
        )
    if dialect.longrope_only:
        if not is_implied:
            raise ValueError(
                f"transformers would multiply cos and sin of this family by {implied:.9g}, from "
                f"lengths of {longest} and {original} tokens; the model does by "
                f"{attention_factor:.9g}. Leave attention_factor out, and use a factor whose "
                "product with original_context_tokens is a whole number."
            )
        return {"type": "longrope", **lists}, lengths
    found = {"rope_type": "longrope", **lists, "factor": factor, rope_read.ORIGINAL: original}
    if scaling.attention_factor is not None or not is_implied:
        found["attention_factor"] = attention_factor
    return found, lengths


def _divisors(config: rope.Rope, head_dim: int, theta: float, length_tokens: int) -> list[float]:
    """What divides theta's frequencies in a document of that length."""
    scaling = config.scaling
    if scaling.kind == "longrope" and theta == config.theta:
        assert scaling.short_factors and scaling.long_factors and scaling.original_context_tokens
        is_long = length_tokens > scaling.original_context_tokens
        return list(scaling.long_factors if is_long else scaling.short_factors)
    freqs_R, _ = rope.frequencies(config, head_dim, length_tokens)
    plain_R = theta ** (-np.arange(len(freqs_R), dtype=np.float64) / len(freqs_R))
    return (plain_R / freqs_R.astype(np.float64)).tolist()


# ---- theirs to ours ----


def from_hf(theirs: Mapping[str, Any], head_dim: int, dialect: Dialect = PLAIN) -> rope.Rope:
    """The rotary embedding of a config.json of transformers 4 or 5.

    Args:
      theirs: the content of config.json.
      head_dim: H.
      dialect: the family's.

    Raises:
      ValueError: an unsupported type or key, or old and new keys that disagree.
    """
    old_theta, scaling = theirs.get("rope_theta"), theirs.get("rope_scaling")
    parameters = theirs.get("rope_parameters")
    nested = [key for key, value in (parameters or {}).items() if isinstance(value, Mapping)]
    if nested:
        raise ValueError(
            f"rope_parameters of config.json has parts for types of layers ({', '.join(nested)}); "
            "all layers of this family share one rotary embedding."
        )
    readings: dict[str, rope.Rope] = {}
    if parameters:
        theta = parameters.get("rope_theta") or old_theta or dialect.default_theta
        readings["rope_parameters"] = rope_read.read(theta, parameters, theirs, head_dim, dialect)
    if scaling or old_theta or not parameters:
        inner = (scaling or {}).get("rope_theta")
        theta = inner or old_theta or (parameters or {}).get("rope_theta") or dialect.default_theta
        readings["rope_theta and rope_scaling"] = rope_read.read(
            theta, scaling or {}, theirs, head_dim, dialect
        )
    return _agreed(readings)


def pair_from_hf(
    theirs: Mapping[str, Any], head_dim: int, dialect: Dialect
) -> tuple[rope.Rope, rope.Rope | None]:
    """The rotary embeddings of full-attention and of sliding-window layers (None: the same one).

    See `from_hf`; `pair_written` is the inverse.
    """
    old_theta, scaling = theirs.get("rope_theta"), theirs.get("rope_scaling")
    has_own_theta = dialect.window_theta is not None
    local = theirs.get("rope_local_base_freq") if has_own_theta else None
    parameters = theirs.get("rope_parameters") or {}
    strangers = sorted(set(parameters) - {FULL, WINDOW})
    if strangers:
        raise ValueError(
            f"rope_parameters of config.json must have the parts {FULL} and {WINDOW}; it also has "
            f"{', '.join(strangers)}."
        )
    parts = {name: parameters.get(name) or {} for name in (FULL, WINDOW)}
    thetas = {name: part.get("rope_theta") for name, part in parts.items()}

    def read(full: Any, window: Any, full_theta: Any, window_theta: Any) -> Any:
        full_theta = full_theta or dialect.default_theta
        window_theta = window_theta or (dialect.window_theta if has_own_theta else full_theta)
        return (
            rope_read.read(full_theta, full, theirs, head_dim, dialect),
            rope_read.read(window_theta, window, theirs, head_dim, dialect),
        )

    readings: dict[str, tuple[rope.Rope, rope.Rope]] = {}
    if parameters:
        window_theta = thetas[WINDOW] or (local if has_own_theta else old_theta)
        readings["rope_parameters"] = read(
            parts[FULL], parts[WINDOW], thetas[FULL] or old_theta, window_theta
        )
    if scaling or old_theta or local or not parameters:
        theta = old_theta or thetas[FULL]
        window_theta = (local or thetas[WINDOW]) if has_own_theta else theta
        readings["the keys of transformers 4"] = read(scaling or {}, {}, theta, window_theta)
    full, window = _agreed(readings)
    return full, None if window == full else window


def _agreed(readings: Mapping[str, Any]) -> Any:
    found = list(readings.values())
    if any(other != found[0] for other in found):
        both = "; ".join(f"{name}: {reading}" for name, reading in readings.items())
        raise ValueError(
            f"config.json describes two different rotary embeddings ({both}). "
            "Delete the wrong one: transformers 4 and 5 would compute different models."
        )
    return found[0]
