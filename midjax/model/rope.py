# SPDX-License-Identifier: Apache-2.0
"""Rotary position embedding and the ways to stretch it, as one function of a frozen config.

Shape suffixes: B batch, T length, N heads, H head size, R = H / 2 rotated pairs.

Layout is half-split: dimension i is paired with i + H/2, as in Hugging Face Llama weights (not with
2i + 1 as in the RoPE paper; going over needs a permutation of the rows of wq and wk).

theta_i = theta^(-2i/H). With s = factor and L = original_context_tokens:
  none    theta_i
  pi      theta_i / s: position interpolation (2306.15595)
  ntk     theta' = theta * s^(H/(H-2)): the lowest frequency slows by exactly s, the highest stays
  yarn    2309.00071 as all released code computes it: a ramp over the *index* i between the indices
          that turn beta_fast and beta_slow times within L. (The paper's own ramp is linear in the
          number of turns and differs by up to 3x in the middle.) cos and sin are multiplied by
          0.1 ln s + 1 unless attention_factor says otherwise.
  llama3  wavelengths over L/low_freq_factor slow by s, those under L/high_freq_factor stay,
          a linear blend in L/wavelength between them (2407.21783 and its released code)
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

Kind = Literal["none", "pi", "ntk", "yarn", "llama3"]

# Which fields a kind needs, and which it may have. Everything else must be None.
_NEEDS: dict[str, tuple[str, ...]] = {
    "none": (),
    "pi": ("factor",),
    "ntk": ("factor",),
    "yarn": ("factor", "original_context_tokens", "beta_fast", "beta_slow", "truncate"),
    "llama3": ("factor", "original_context_tokens", "low_freq_factor", "high_freq_factor"),
}
_MAY: dict[str, tuple[str, ...]] = {"yarn": ("attention_factor",)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How frequencies change when the context grows. None = not used by this kind.

    Attributes:
      kind: see the module's docstring.
      factor: s, new over old context length (pi, ntk, yarn, llama3).
      original_context_tokens: L, the length before the extension (yarn, llama3).
      beta_fast: turns within L from which a dimension stays as it is; the paper has 32 (yarn).
      beta_slow: turns within L under which a dimension is interpolated; the paper has 1 (yarn).
      low_freq_factor: Llama 3.1 has 1 (llama3).
      high_freq_factor: Llama 3.1 has 4 (llama3).
      attention_factor: multiplies cos and sin; None computes 0.1 ln s + 1 (yarn).
      truncate: round the ramp's ends outwards to whole dimensions, as released code does (yarn).
    """

    kind: Kind
    factor: float | None = None
    original_context_tokens: int | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    attention_factor: float | None = None
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
            if value is not None and field.name != "truncate" and not value > 0:
                raise ValueError(f"RopeScaling.{field.name} must be over 0, got {value!r}.")
        if self.factor is not None and self.factor < 1:
            raise ValueError(f"RopeScaling.factor must be 1 or more, got {self.factor}.")
        for small, large in (("beta_slow", "beta_fast"), ("low_freq_factor", "high_freq_factor")):
            low, high = getattr(self, small), getattr(self, large)
            if low is not None and high is not None and low >= high:
                raise ValueError(
                    f"RopeScaling.{small} must be under {large}, got {low} and {high}."
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary embedding.

    Attributes:
      theta: base of the frequencies; raising it is "adjusted base frequency" (2309.16039).
      scaling: what is done to them for a longer context.
    """

    theta: float
    scaling: RopeScaling

    def __post_init__(self) -> None:
        if not self.theta > 1:
            raise ValueError(f"Rope.theta must be over 1, got {self.theta}.")


def ntk_theta(theta: float, factor: float, head_dim: int) -> float:
    """The base of NTK-aware scaling: theta * s^(H/(H-2))."""
    return float(theta * factor ** (head_dim / (head_dim - 2)))


def correction_range(rope: Rope, head_dim: int) -> tuple[float, float]:
    """Ends (low, high) of YaRN's ramp, in indices of rotated pairs.

    dim(n) = H ln(L / (2 pi n)) / (2 ln theta) turns n times within L.
    """
    scaling = rope.scaling
    original, fast, slow = scaling.original_context_tokens, scaling.beta_fast, scaling.beta_slow
    assert original and fast and slow

    def dim(turns: float) -> float:
        length = original / (2 * math.pi * turns)
        return head_dim * math.log(length) / (2 * math.log(rope.theta))

    low, high = dim(fast), dim(slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    # H - 1 although there are only H/2 pairs: so does the code that made the checkpoints.
    return float(max(low, 0)), float(min(high, head_dim - 1))


def _yarn(rope: Rope, theta_R: np.ndarray, head_dim: int) -> tuple[np.ndarray, float]:
    scaling = rope.scaling
    assert scaling.factor is not None
    low, high = correction_range(rope, head_dim)
    if low == high:
        high += 0.001
    ramp_R = np.clip((np.arange(head_dim // 2) - low) / (high - low), 0, 1)
    factor = scaling.attention_factor
    if factor is None:
        factor = 0.1 * math.log(scaling.factor) + 1
    return theta_R * (1 - ramp_R) + theta_R / scaling.factor * ramp_R, factor


def _llama3(scaling: RopeScaling, theta_R: np.ndarray) -> np.ndarray:
    assert scaling.factor and scaling.original_context_tokens
    assert scaling.low_freq_factor and scaling.high_freq_factor
    turns_R = scaling.original_context_tokens * theta_R / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    blend_R = np.clip((turns_R - low) / (high - low), 0, 1)
    return (1 - blend_R) * theta_R / scaling.factor + blend_R * theta_R


def check_head_dim(rope: Rope, head_dim: int) -> None:
    """Refuses a head that cannot be turned.

    Raises:
      ValueError: an odd number of dimensions, or under 4.
    """
    if head_dim % 2 or head_dim < 4:
        raise ValueError(
            f"RoPE turns pairs of dimensions: head_dim must be even and at least 4, got {head_dim}."
        )


def frequencies(rope: Rope, head_dim: int) -> tuple[Float32[np.ndarray, "R"], float]:
    """Radians per token of every rotated pair, and the factor on cos and sin.

    Computed in float64 and rounded once, so it is the same on every machine.

    Args:
      rope: theta and scaling; formulas in the module's docstring.
      head_dim: H, even.

    Returns:
      Frequencies [H/2] in float32, and the attention factor (1 but for YaRN).
    """
    check_head_dim(rope, head_dim)
    scaling, theta, attention_factor = rope.scaling, rope.theta, 1.0
    factor = scaling.factor or 1.0
    if scaling.kind == "ntk":
        theta = ntk_theta(theta, factor, head_dim)
    theta_R = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling.kind == "pi":
        theta_R = theta_R / factor
    elif scaling.kind == "yarn":
        theta_R, attention_factor = _yarn(rope, theta_R, head_dim)
    elif scaling.kind == "llama3":
        theta_R = _llama3(scaling, theta_R)
    return theta_R.astype(np.float32), float(attention_factor)


def angles(
    positions_BT: Int[Array, "B T"], freqs_R: Float32[np.ndarray, "R"], factor: float
) -> tuple[Float32[Array, "B T 1 R"], Float32[Array, "B T 1 R"]]:
    """cos and sin of every position, times the attention factor; the same for all layers."""
    angle_BT1R = positions_BT[:, :, None, None].astype(jnp.float32) * freqs_R
    return jnp.cos(angle_BT1R) * factor, jnp.sin(angle_BT1R) * factor


def rotate(
    x_BTNH: Float[Array, "B T N H"],
    cos_BT1R: Float32[Array, "B T 1 R"],
    sin_BT1R: Float32[Array, "B T 1 R"],
) -> Float[Array, "B T N H"]:
    """Turns queries or keys by the given angles, in float32; the result has the input's dtype."""
    first_BTNR, second_BTNR = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    turned = (
        first_BTNR * cos_BT1R - second_BTNR * sin_BT1R,
        second_BTNR * cos_BT1R + first_BTNR * sin_BT1R,
    )
    return jnp.concatenate(turned, axis=-1).astype(x_BTNH.dtype)


def apply(
    x_BTNH: Float[jax.Array, "B T N H"],
    positions_BT: Int[jax.Array, "B T"],
    freqs_R: Float32[np.ndarray, "R"],
    factor: float,
) -> Float[jax.Array, "B T N H"]:
    """`angles` and `rotate` in one."""
    return rotate(x_BTNH, *angles(positions_BT, freqs_R, factor))
