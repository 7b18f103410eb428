# SPDX-License-Identifier: Apache-2.0
"""Rotary position embedding and the ways to stretch it, as one function of a frozen config.

Shape suffixes: B batch, T length, N heads, H head size, R rotated pairs; d = 2R dimensions turn,
the first of each head (all of them unless `rotary_dims` says otherwise).

Layout is half-split: dimension i is paired with i + R, as in Hugging Face Llama weights (not with
2i + 1 as in the RoPE paper; going over needs a permutation of the rows of wq and wk).

theta_i = theta^(-2i/d). With s = factor and L = original_context_tokens:
  none          theta_i ("adjusted base frequency", 2309.16039, is a larger theta with this kind)
  pi            theta_i / s: position interpolation (2306.15595)
  ntk           theta' = theta * s^(d/(d-2)): the lowest frequency slows by exactly s, the highest
                stays
  dynamic_ntk   ntk with s l/L - (s - 1) for s, where l is the document's length, at least L
  ntk_by_parts  a dimension turns r = L theta_i / (2 pi) times within L: over beta_fast turns it
                stays, under beta_slow it slows by s, a blend linear in r between them (the ramp
                of 2309.00071, equation 18)
  yarn          2309.00071 as all released code computes it: a ramp over the *index* i between the
                indices that turn beta_fast and beta_slow times within L. (The paper's own ramp
                differs by up to 3x in the middle.) cos and sin are multiplied by 0.1 ln s + 1
                unless attention_factor says otherwise.
  longrope      theta_i / short_factors[i] in documents of up to L tokens, theta_i / long_factors[i]
                in longer ones (2402.13753). cos and sin are multiplied by sqrt(1 + ln s / ln L),
                whatever the length, unless attention_factor says otherwise.
  llama3        wavelengths over L/low_freq_factor slow by s, those under L/high_freq_factor stay,
                a linear blend in L/wavelength between them (2407.21783 and its released code): the
                function of ntk_by_parts
"""

import dataclasses
import math
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int

Kind = Literal["none", "pi", "ntk", "dynamic_ntk", "ntk_by_parts", "yarn", "longrope", "llama3"]

# Which fields a kind needs, and which it may have. Everything else must be None.
_NEEDS: dict[str, tuple[str, ...]] = {
    "none": (),
    "pi": ("factor",),
    "ntk": ("factor",),
    "dynamic_ntk": ("factor", "original_context_tokens"),
    "ntk_by_parts": ("factor", "original_context_tokens", "beta_fast", "beta_slow"),
    "yarn": ("factor", "original_context_tokens", "beta_fast", "beta_slow", "truncate"),
    "longrope": ("factor", "original_context_tokens", "short_factors", "long_factors"),
    "llama3": ("factor", "original_context_tokens", "low_freq_factor", "high_freq_factor"),
}
_MAY = {
    "yarn": ("attention_factor",),
    "longrope": ("attention_factor", "long_attention_factor"),
}
_LEAST = {"factor": 1, "original_context_tokens": 2}
# Powers of two in the table of `_dynamic_freqs`: a stretch of 2^63 is beyond any document.
_POWERS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How frequencies change when the context grows. None = not used by this kind.

    Attributes:
      kind: see the module's docstring.
      factor: s, new over old context length (all kinds but "none").
      original_context_tokens: L, the length before the extension (dynamic_ntk, ntk_by_parts, yarn,
        longrope, llama3).
      beta_fast: turns within L from which a dimension stays as it is; the paper has 32 (yarn,
        ntk_by_parts).
      beta_slow: turns within L under which a dimension is interpolated; the paper has 1 (yarn,
        ntk_by_parts).
      low_freq_factor: Llama 3.1 has 1 (llama3).
      high_freq_factor: Llama 3.1 has 4 (llama3).
      short_factors: divisors of the R frequencies in documents of up to L tokens (longrope).
      long_factors: the same in longer documents (longrope).
      attention_factor: multiplies cos and sin; None computes it (yarn, longrope).
      long_attention_factor: the same in documents of over L tokens; None is no other (longrope).
      truncate: round the ramp's ends outwards to whole dimensions, as released code does (yarn).
    """

    kind: Kind
    factor: float | None = None
    original_context_tokens: int | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    short_factors: tuple[float, ...] | None = None
    long_factors: tuple[float, ...] | None = None
    attention_factor: float | None = None
    long_attention_factor: float | None = None
    truncate: bool | None = None

    def __post_init__(self) -> None:
        if self.kind not in _NEEDS:
            raise ValueError(f"RopeScaling.kind is {self.kind!r}; allowed: {', '.join(_NEEDS)}.")
        needs, may = _NEEDS[self.kind], _MAY.get(self.kind, ())
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "kind":
                continue
            if field.name in needs and value is None:
                raise ValueError(
                    f"RopeScaling of kind {self.kind!r} needs {field.name}. "
                    f"It needs all of: {', '.join(needs)}."
                )
            if field.name not in needs + may and value is not None:
                raise ValueError(
                    f"RopeScaling of kind {self.kind!r} does not use {field.name}, which is "
                    f"{value!r}. Leave it out (None), or choose the kind that uses it."
                )
            if value is not None and field.name != "truncate":
                _check_number(field.name, value)
        for small, large in (("beta_slow", "beta_fast"), ("low_freq_factor", "high_freq_factor")):
            low, high = getattr(self, small), getattr(self, large)
            if low is not None and high is not None and low >= high:
                raise ValueError(
                    f"RopeScaling.{small} must be under {large}, got {low} and {high}."
                )


def _check_number(name: str, value: Any) -> None:
    if name in ("short_factors", "long_factors"):
        if not isinstance(value, tuple) or not all(0 < one < math.inf for one in value):
            raise ValueError(
                f"RopeScaling.{name} must be a tuple of finite numbers over 0, got {value!r}."
            )
    elif not _LEAST.get(name, 0) <= value < math.inf or value == 0:
        bound = f"{_LEAST[name]} or more" if name in _LEAST else "over 0"
        raise ValueError(f"RopeScaling.{name} must be {bound} and finite, got {value!r}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary embedding.

    Attributes:
      theta: base of the frequencies; raising it is "adjusted base frequency" (2309.16039).
      scaling: what is done to them for a longer context.
      rotary_dims: 2R, how many of a head's first dimensions turn (Phi-4-mini: 96 of 128); None is
        all of them.
    """

    theta: float
    scaling: RopeScaling
    rotary_dims: int | None = None

    def __post_init__(self) -> None:
        if not 1 < self.theta < math.inf:
            raise ValueError(f"Rope.theta must be over 1 and finite, got {self.theta}.")


def turned_dims(rope: Rope, head_dim: int) -> int:
    """2R, how many of a head's dimensions turn."""
    return head_dim if rope.rotary_dims is None else rope.rotary_dims


def check_head_dim(rope: Rope, head_dim: int) -> None:
    """Refuses a rotary embedding that does not fit a head.

    Raises:
      ValueError: an odd number of dimensions, or under 4, or more than the head has; lists of
        another length than there are pairs.
    """
    dims = turned_dims(rope, head_dim)
    if dims % 2 or dims < 4:
        name = "head_dim" if rope.rotary_dims is None else "Rope.rotary_dims"
        raise ValueError(
            f"RoPE turns pairs of dimensions: {name} must be even and at least 4, got {dims}."
        )
    if dims > head_dim:
        raise ValueError(
            f"Rope.rotary_dims must be at most head_dim, got {dims} with head_dim {head_dim}."
        )
    for name in ("short_factors", "long_factors"):
        factors = getattr(rope.scaling, name)
        if factors is not None and len(factors) != dims // 2:
            raise ValueError(
                f"RopeScaling.{name} must have one number for each of the {dims // 2} pairs of "
                f"dimensions that turn, got {len(factors)}."
            )


def ntk_theta(theta: float, factor: float, dims: int) -> float:
    """The base of NTK-aware scaling: theta * s^(d/(d-2)), d the dimensions that turn."""
    return float(theta * factor ** (dims / (dims - 2)))


def correction_range(rope: Rope, head_dim: int) -> tuple[float, float]:
    """Ends (low, high) of YaRN's ramp, in indices of rotated pairs.

    dim(n) = d ln(L / (2 pi n)) / (2 ln theta) turns n times within L.
    """
    scaling, dims = rope.scaling, turned_dims(rope, head_dim)
    original, fast, slow = scaling.original_context_tokens, scaling.beta_fast, scaling.beta_slow
    assert original and fast and slow

    def dim(turns: float) -> float:
        length = original / (2 * math.pi * turns)
        return dims * math.log(length) / (2 * math.log(rope.theta))

    low, high = dim(fast), dim(slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    # d - 1 although there are only d/2 pairs: so does the code that made the checkpoints.
    return float(max(low, 0)), float(min(high, dims - 1))


def _yarn(rope: Rope, turns_R: np.ndarray, head_dim: int) -> tuple[np.ndarray, float]:
    scaling = rope.scaling
    assert scaling.factor is not None
    low, high = correction_range(rope, head_dim)
    if low == high:
        high += 0.001
    ramp_R = np.clip((np.arange(len(turns_R), dtype=np.float32) - low) / (high - low), 0, 1)
    kept_R = 1 - ramp_R
    factor = scaling.attention_factor
    if factor is None:
        factor = 0.1 * math.log(scaling.factor) + 1
    return 1 / (scaling.factor * turns_R) * (1 - kept_R) + 1 / turns_R * kept_R, factor


def _by_turns(scaling: RopeScaling, freqs_R: np.ndarray) -> np.ndarray:
    """llama3 and ntk_by_parts: one function, whose two bounds have two names."""
    low = scaling.low_freq_factor or scaling.beta_slow
    high = scaling.high_freq_factor or scaling.beta_fast
    factor, original = scaling.factor, scaling.original_context_tokens
    assert factor and original and low and high
    wavelength_R = 2 * math.pi / freqs_R
    share_R = (original / wavelength_R - low) / (high - low)
    between_R = (1 - share_R) * freqs_R / factor + share_R * freqs_R
    slow_R = np.where(wavelength_R > original / low, freqs_R / factor, between_R)
    return np.where(wavelength_R < original / high, freqs_R, slow_R)


def _longrope(
    scaling: RopeScaling, turns_R: np.ndarray, length_tokens: int
) -> tuple[np.ndarray, float]:
    original, factor = scaling.original_context_tokens, scaling.attention_factor
    assert original and scaling.factor
    if factor is None:
        factor = math.sqrt(1 + math.log(scaling.factor) / math.log(original))
    divisors = scaling.short_factors
    if length_tokens > original:
        divisors, factor = scaling.long_factors, scaling.long_attention_factor or factor
    return 1 / (np.array(divisors, np.float32) * turns_R), factor


def frequencies(
    rope: Rope, head_dim: int, length_tokens: int | None = None
) -> tuple[Float32[np.ndarray, "R"], float]:
    """Radians per token of every rotated pair, and the factor on cos and sin.

    Powers are made in float64 and rounded once, so they are the same on every machine. What follows
    is in float32 and in the order in which transformers computes, which then rounds as it does: at
    position 100,000 a frequency of 1 that is off by its last bit turns by 0.01.

    Args:
      rope: theta and scaling; formulas in the module's docstring.
      head_dim: H.
      length_tokens: the document's length, for the kinds that need it (see `needs_lengths`); None
        is a document of at most the original length.

    Returns:
      Frequencies [R] in float32, and the attention factor (1 but for yarn and longrope).

    Raises:
      ValueError: the rotary embedding does not fit the head; see `check_head_dim`.
    """
    check_head_dim(rope, head_dim)
    scaling, theta, attention_factor = rope.scaling, rope.theta, 1.0
    factor, length, dims = scaling.factor or 1.0, length_tokens or 0, turned_dims(rope, head_dim)
    if scaling.kind == "ntk":
        theta = ntk_theta(theta, factor, dims)
    elif scaling.kind == "dynamic_ntk":
        assert scaling.original_context_tokens
        over = max(length / scaling.original_context_tokens - 1, 0)
        theta = ntk_theta(theta, 1 + factor * over, dims)
    exponents_R = np.arange(0, dims, 2, dtype=np.float64) / dims
    turns_R = (theta**exponents_R).astype(np.float32)  # tokens per radian
    freqs_R = 1 / turns_R
    if scaling.kind == "pi":
        freqs_R = freqs_R / factor
    elif scaling.kind == "yarn":
        freqs_R, attention_factor = _yarn(rope, turns_R, head_dim)
    elif scaling.kind in ("llama3", "ntk_by_parts"):
        freqs_R = _by_turns(scaling, freqs_R)
    elif scaling.kind == "longrope":
        freqs_R, attention_factor = _longrope(scaling, turns_R, length)
    return freqs_R, float(attention_factor)


def needs_lengths(rope: Rope) -> bool:
    """Whether a token's frequencies depend on the length of its document."""
    return rope.scaling.kind in ("dynamic_ntk", "longrope")


def _dynamic_freqs(
    rope: Rope, head_dim: int, lengths_BT: Int[Array, "B T"]
) -> Float32[Array, "B T 1 R"]:
    """`frequencies` of dynamic_ntk at every token's length, within 3e-7 of float64.

    theta' = theta * x^(d/(d-2)) means theta_i * x^(-i/(R-1)). A float32 power of a large x is not
    good enough, so x = 2^k m with m in [1, 2): powers of 2 come from a table made in float64.
    """
    factor, original = rope.scaling.factor, rope.scaling.original_context_tokens
    assert factor and original
    index_R = np.arange(turned_dims(rope, head_dim) // 2, dtype=np.float64)
    power_R = index_R / index_R[-1]
    plain_R = rope.theta ** (-index_R / len(index_R))
    table_KR = plain_R * 2.0 ** (-np.arange(_POWERS)[:, None] * power_R)
    over_BT = jnp.maximum(lengths_BT - original, 0).astype(jnp.float32)
    half_BT, k_BT = jnp.frexp(1 + over_BT * np.float32(factor / original))
    log_BT1 = jnp.log(2 * half_BT)[:, :, None]
    freqs_BTR = jnp.take(table_KR.astype(np.float32), k_BT - 1, axis=0, mode="clip")
    return (freqs_BTR * jnp.exp(-log_BT1 * power_R.astype(np.float32)))[:, :, None, :]


def angles(
    rope: Rope,
    head_dim: int,
    positions_BT: Int[Array, "B T"],
    lengths_BT: Int[Array, "B T"] | None,
) -> tuple[Float32[Array, "B T 1 R"], Float32[Array, "B T 1 R"]]:
    """cos and sin of every token's angles, times the attention factor; the same for all layers.

    Args:
      rope: the rotary embedding.
      head_dim: H.
      positions_BT: position within the document.
      lengths_BT: `documents.lengths`; may be None where `needs_lengths` is false, and is not read.

    Raises:
      ValueError: lengths are needed and missing.
    """
    freqs_R, of_short = frequencies(rope, head_dim)
    freqs: Any = freqs_R
    factor: Any = of_short
    if needs_lengths(rope):
        if lengths_BT is None:
            raise ValueError(
                f"RopeScaling of kind {rope.scaling.kind!r} depends on the length of the document: "
                "rope.angles needs lengths_BT; documents.lengths makes it."
            )
        original = rope.scaling.original_context_tokens
        assert original is not None
        if rope.scaling.kind == "dynamic_ntk":
            freqs = _dynamic_freqs(rope, head_dim, lengths_BT)
        else:
            long_R, of_long = frequencies(rope, head_dim, original + 1)
            is_long_BT11 = lengths_BT[:, :, None, None] > original
            freqs = jnp.where(is_long_BT11, long_R, freqs_R)
            factor = jnp.where(is_long_BT11, of_long, of_short)
    angle_BT1R = positions_BT[:, :, None, None].astype(jnp.float32) * freqs
    return jnp.cos(angle_BT1R) * factor, jnp.sin(angle_BT1R) * factor
