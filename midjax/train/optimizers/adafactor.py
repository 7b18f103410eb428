# SPDX-License-Identifier: Apache-2.0
"""Adafactor.

Written out, as Optax's takes each array for one matrix: of a stack of layers it would factor the
two largest axes, whatever they are, and clip and scale all layers by one number.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from midjax.train.optimizers import common, matrices
from midjax.train.optimizers.common import Flat


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor(common.Common):
    """Adafactor, Shazeer and Stern 1804.04235, algorithm 4 with the decay of section 7.2.

    As T5 has it (1910.10683): factored, no momentum, scaled by the parameter. As PaLM has it
    (2204.02311, section 5): not factored, b1 = 0.9, scaled by the parameter, clip_norm = 1. Each
    matrix of `matrices`, and each layer's vector, is clipped and scaled by itself, as T5X does.

    The means of squares stay in float32: their weight nears 1 (see `decay_exponent`), and after
    1,024 updates a mean in bfloat16 could not fall any more.

    Attributes:
      factored: means of squares per row and per column instead of per number, for matrices.
      min_factored_dim: matrices with fewer rows or columns are not factored (128 in T5X).
      decay_exponent: at update t the mean's weight is 1 - t^-decay_exponent; 0.8 in the paper.
      eps: added to squared gradients; 1e-30 in the paper.
      clip_rms: root mean square above which a direction is scaled down; None for no clip; 1 in
        the paper.
      scale_by_parameter: multiplies a direction by the parameter's root mean square, so that the
        learning rate is relative: 1e-2 at most, where AdamW has 3e-4.
      min_parameter_rms: least such multiplier; 1e-3 in the paper.
      b1: weight of the mean of directions, momentum; None for none. It is taken before the
        learning rate, which T5X and transformers take into the mean.
      mu_dtype: of that mean.
      weight_decay, clip_norm, decay_rules: see `common.Common`. Decay is not scaled by the
        parameter.
    """

    factored: bool
    min_factored_dim: int
    decay_exponent: float
    eps: float
    clip_rms: float | None
    scale_by_parameter: bool
    min_parameter_rms: float
    b1: float | None
    mu_dtype: common.Dtype

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.b1 is not None:
            common.check_means(self, b1=self.mu_dtype)
        above = {
            "min_factored_dim": self.min_factored_dim,
            "decay_exponent": self.decay_exponent,
            "eps": self.eps,
            "clip_rms": 1.0 if self.clip_rms is None else self.clip_rms,
            "min_parameter_rms": self.min_parameter_rms,
        }
        for field, value in above.items():
            if value <= 0:
                raise ValueError(f"Adafactor.{field} must be above 0, got {value}.")

    def moments(self, shapes: Mapping[str, Sequence[int]]) -> common.Moments:
        """nu_row and nu_col, or nu_full; mu_update where there is momentum."""
        found: common.Moments = {}
        for name, axes in matrices.axes(shapes).items():
            every = tuple(range(len(shapes[name])))
            if self._factors(axes, shapes[name]):
                kept = {"nu_row": axes.stack + axes.rows, "nu_col": axes.stack + axes.columns}
            else:
                kept = {"nu_full": every}
            found[name] = {kind: common.Moment(of, "float32") for kind, of in kept.items()}
            if self.b1 is not None:
                found[name]["mu_update"] = common.Moment(every, self.mu_dtype)
        return found

    def direction(
        self, gradients: Flat, moments: dict[str, Flat], count: jax.Array, params: Flat
    ) -> tuple[Flat, dict[str, Flat]]:
        """Algorithm 4 without its learning rate, and the moments after it."""
        weight = 1 - jnp.power(count.astype(jnp.float32) + 1, -self.decay_exponent)
        axes = matrices.axes({name: leaf.shape for name, leaf in params.items()})
        directions: Flat = {}
        after: dict[str, Flat] = {kind: {} for kind in moments}
        for name, gradient in gradients.items():
            of, within = axes[name], axes[name].within
            squares = jnp.square(gradient) + self.eps

            def mean(kind: str, new: jax.Array, name: str = name) -> jax.Array:
                after[kind][name] = weight * moments[kind][name] + (1 - weight) * new
                return after[kind][name]

            if self._factors(of, gradient.shape):
                row = jnp.expand_dims(mean("nu_row", squares.mean(of.columns)), of.columns)
                column = jnp.expand_dims(mean("nu_col", squares.mean(of.rows)), of.rows)
                row /= row.mean(of.rows, keepdims=True)
                update = gradient * jax.lax.rsqrt(row) * jax.lax.rsqrt(column)
            else:
                update = gradient * jax.lax.rsqrt(mean("nu_full", squares))
            if self.clip_rms is not None:
                update /= jnp.maximum(1.0, _rms(update, within) / self.clip_rms)
            if self.scale_by_parameter:
                update *= jnp.maximum(self.min_parameter_rms, _rms(params[name], within))
            if self.b1 is not None:
                update = self.b1 * moments["mu_update"][name] + (1 - self.b1) * update
                after["mu_update"][name] = update
            directions[name] = update
        return directions, after

    def _factors(self, axes: matrices.Axes, shape: Sequence[int]) -> bool:
        return self.factored and bool(axes.rows) and min(axes.sizes(shape)) >= self.min_factored_dim


def _rms(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.sqrt(jnp.square(x).mean(axes, keepdims=True))
