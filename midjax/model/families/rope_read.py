# SPDX-License-Identifier: Apache-2.0
"""One rotary embedding of a config.json, as transformers 4 and 5 would take it.

What is not written is filled in as they do; what they would read in two ways is refused, and so is
what they would not read at all. Which keys of a config.json make one rotary embedding is the matter
of `rope_keys`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from midjax.model import rope


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dialect:
    """How a family's config class departs from what most do.

    Attributes:
      default_theta: theta where config.json has none.
      window_theta: default of `rope_local_base_freq`; None: the class does not read that key.
      partial: reads `partial_rotary_factor`. Others turn whole heads.
      longrope_only: knows no other type. In transformers 4 Phi-3's `rope_scaling` must hold `type`
        and the two lists and nothing else; the factor is `max_position_embeddings` over
        `original_max_position_embeddings`.
      mscales: the attention factor is called `short_mscale` and `long_mscale`.
    """

    default_theta: float = 10_000.0
    window_theta: float | None = None
    partial: bool = False
    longrope_only: bool = False
    mscales: bool = False


ORIGINAL = "original_max_position_embeddings"
# Their rope_type -> (our kind, {their key: our field}). Any other key is refused: a number that is
# read by nobody changes the model in silence.
KINDS: Mapping[str, tuple[rope.Kind, Mapping[str, str]]] = {
    "default": ("none", {}),
    "linear": ("pi", {"factor": "factor"}),
    # Of dynamic the length is not written here: transformers takes `max_position_embeddings`.
    "dynamic": ("dynamic_ntk", {"factor": "factor", ORIGINAL: "original_context_tokens"}),
    "yarn": (
        "yarn",
        {
            "factor": "factor",
            ORIGINAL: "original_context_tokens",
            "beta_fast": "beta_fast",
            "beta_slow": "beta_slow",
            "attention_factor": "attention_factor",
            "truncate": "truncate",
        },
    ),
    "longrope": (
        "longrope",
        {
            "factor": "factor",
            ORIGINAL: "original_context_tokens",
            "short_factor": "short_factors",
            "long_factor": "long_factors",
            "attention_factor": "attention_factor",
            "long_attention_factor": "long_attention_factor",
        },
    ),
    "llama3": (
        "llama3",
        {
            "factor": "factor",
            ORIGINAL: "original_context_tokens",
            "low_freq_factor": "low_freq_factor",
            "high_freq_factor": "high_freq_factor",
        },
    ),
}


def read(
    theta: Any,
    scaling: Mapping[str, Any],
    theirs: Mapping[str, Any],
    head_dim: int,
    dialect: Dialect,
) -> rope.Rope:
    """The rotary embedding that a theta and a `rope_scaling` (or part of `rope_parameters`) make.

    Args:
      theta: the base.
      scaling: empty for none.
      theirs: the whole config.json, for what stands at its top level.
      head_dim: H.
      dialect: the family's.

    Raises:
      ValueError: an unsupported type or key, or numbers that contradict each other.
    """
    fields = {key: value for key, value in scaling.items() if value is not None}
    fields.pop("rope_theta", None)
    # "type" is the key's name before transformers 4.45.
    old = fields.pop("type", "default")
    kind = fields.pop("rope_type", old)
    if dialect.longrope_only and kind in ("su", "yarn"):
        kind = "longrope"  # its names before it had one
    known = ("default", "longrope") if dialect.longrope_only else tuple(KINDS)
    if kind not in known:
        raise ValueError(
            f"rope_type {kind!r} is not supported; supported: {', '.join(known)}. "
            "Import a checkpoint with one of these, or write the scaling in midjax/model/rope.py."
        )
    dims = _rotary_dims(fields.pop("partial_rotary_factor", None), theirs, head_dim, dialect)
    ours, keys = KINDS[kind]
    allowed = set(keys) - {"long_attention_factor"}  # filled in below, a key of nobody's
    if kind == "yarn":
        allowed |= {"mscale", "mscale_all_dim"}
    if kind == "longrope" and dialect.mscales:
        allowed = allowed - {"attention_factor"} | {"short_mscale", "long_mscale"}
    unknown = sorted(set(fields) - allowed)
    if unknown:
        raise ValueError(
            f"The rotary embedding of type {kind!r} has keys that are not supported: "
            f"{', '.join(unknown)}; supported: {', '.join(sorted(allowed)) or 'none'}."
        )
    if ORIGINAL in keys:
        fields[ORIGINAL] = _original(kind, fields.get(ORIGINAL), theirs)
    if kind == "yarn":
        fields = _yarn_fields(fields, theirs)
    elif kind == "longrope":
        fields = _longrope_fields(fields, theirs, dialect)
    given = {keys[key]: _plain(key, value) for key, value in fields.items()}
    found = rope.Rope(
        theta=float(theta), scaling=rope.RopeScaling(kind=ours, **given), rotary_dims=dims
    )
    rope.check_head_dim(found, head_dim)
    return found


def _plain(key: str, value: Any) -> Any:
    """JSON writers drop the point of 8.0; lengths are the only whole numbers here."""
    if key == "truncate":
        return value
    if key == ORIGINAL:
        return int(value)
    if key in ("short_factor", "long_factor"):
        return tuple(float(one) for one in value)
    return float(value)


def _context_tokens(theirs: Mapping[str, Any]) -> int:
    if theirs.get("max_position_embeddings") is None:
        raise ValueError("config.json lacks max_position_embeddings, which its RoPE needs.")
    return theirs["max_position_embeddings"]


def _rotary_dims(
    inner: Any, theirs: Mapping[str, Any], head_dim: int, dialect: Dialect
) -> int | None:
    """transformers 4 has the factor at the top level, 5 may have it in `rope_parameters`."""
    outer = theirs.get("partial_rotary_factor")
    if inner is not None and outer is not None and inner != outer:
        raise ValueError(
            f"config.json has partial_rotary_factor {outer} at the top level and {inner} for its "
            "rotary embedding. Delete the wrong one."
        )
    factor = inner if outer is None else outer
    if factor is None or factor == 1:
        return None
    if not dialect.partial:
        raise ValueError(
            f"config.json has partial_rotary_factor = {factor!r}; transformers turns whole heads "
            "in this family. Supported: 1 or None."
        )
    dims = int(head_dim * factor)
    return None if dims == head_dim else dims


def _original(kind: str, inner: Any, theirs: Mapping[str, Any]) -> Any:
    outer, context_tokens = theirs.get(ORIGINAL), _context_tokens(theirs)
    if kind == "dynamic":
        outer = context_tokens
    if inner is not None and outer is not None and inner != outer:
        name = "max_position_embeddings" if kind == "dynamic" else f"{ORIGINAL} at the top level"
        raise ValueError(
            f"The rotary embedding of type {kind!r} has {ORIGINAL} = {inner}, and config.json has "
            f"{name} = {outer}, which transformers reads as the same. Make them equal."
        )
    found = outer if inner is None else inner
    if found is None and kind == "longrope":
        raise ValueError(
            f"config.json lacks {ORIGINAL}, the length up to which longrope uses short_factor."
        )
    return context_tokens if found is None else found


def _yarn_fields(fields: dict[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Fills in what transformers fills in for YaRN, and folds `mscale` into the factor."""
    if "factor" not in fields:
        fields["factor"] = _context_tokens(theirs) / fields[ORIGINAL]
    mscale, all_dim = fields.pop("mscale", None), fields.pop("mscale_all_dim", None)
    if "attention_factor" not in fields and mscale and all_dim:
        log = math.log(max(fields["factor"], 1.0))
        fields["attention_factor"] = (0.1 * mscale * log + 1) / (0.1 * all_dim * log + 1)
    fields["beta_fast"] = fields.get("beta_fast") or 32.0
    fields["beta_slow"] = fields.get("beta_slow") or 1.0
    fields.setdefault("truncate", True)
    return fields


def _longrope_fields(
    fields: dict[str, Any], theirs: Mapping[str, Any], dialect: Dialect
) -> dict[str, Any]:
    """Fills in the factor, and gives PhiMoE's attention factor its usual name."""
    if dialect.mscales:
        short, long = fields.pop("short_mscale", None), fields.pop("long_mscale", None)
        if short is None or long is None:
            raise ValueError(
                f"config.json has short_mscale {short} and long_mscale {long}; both are needed."
            )
        fields["attention_factor"] = short
        if long != short:
            fields["long_attention_factor"] = long
    ratio = _context_tokens(theirs) / fields[ORIGINAL]
    factor = fields.setdefault("factor", max(ratio, 1.0))
    if "attention_factor" not in fields and not math.isclose(factor, max(ratio, 1.0)):
        raise ValueError(
            f"longrope has factor = {factor}, and max_position_embeddings / {ORIGINAL} = "
            f"{ratio}: transformers 5 takes the former for the attention factor, transformers 4 "
            "the latter. Make them equal, or write attention_factor."
        )
    return fields
