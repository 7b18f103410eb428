# SPDX-License-Identifier: Apache-2.0
"""The gradient-noise scale: how large a batch is worth its tokens.

McCandlish et al. 1812.06162, appendix A.1. The gradient of n tokens has the expectation of its
squared length |G|^2 + S / n, where G is the true gradient and S the trace of the covariance of one
token's. Two sizes of n give both, without a bias:

    S     = (mean_m |g_m|^2 - |g|^2) / (mean_m 1 / n_m - 1 / n)      g_m: of part m, with n_m tokens
    |G|^2 = |g|^2 - S / n                                            g: of the batch, with n
    noise scale = S / |G|^2, in tokens

Batches far below the scale are nearly as good per token as smaller ones would be; far above it a
larger batch hardly helps. Tokens here are loss-bearing ones, taken as independent. They are not, as
neighbours share a row, so the scale is that of batches made of rows like these.

One measurement is noisy and may be negative: S and |G|^2 are averaged over measurements, and the
ratio is taken of the averages.
"""

import dataclasses

import jax
import jax.numpy as jnp


def estimate(
    part_squares: jax.Array, part_weights: jax.Array, square: jax.Array, weight: jax.Array
) -> dict[str, jax.Array]:
    """S and |G|^2 from one batch and its parts.

    Args:
      part_squares: [M] squared length of the gradient of each part's own mean loss, M > 1.
      part_weights: [M] loss-bearing tokens of each; parts with none are left out.
      square: of the whole batch's mean loss.
      weight: its loss-bearing tokens.

    Returns:
      {"covariance_trace": S in tokens, "gradient_square": |G|^2}, not a number where fewer than two
      parts bear loss.
    """
    there = part_weights > 0
    parts = there.sum()
    inverse = jnp.where(there, 1.0 / jnp.where(there, part_weights, 1.0), 0.0).sum() / parts
    small = jnp.where(there, part_squares, 0.0).sum() / parts
    spread = jnp.where(parts > 1, inverse - 1.0 / weight, jnp.nan)
    trace = (small - square) / spread
    return {"covariance_trace": trace, "gradient_square": square - trace / weight}


@dataclasses.dataclass
class Running:
    """Averages over the measurements of one process.

    Attributes:
      count: measurements that were finite.
      covariance_trace, gradient_square: their means.
    """

    count: int = 0
    covariance_trace: float = 0.0
    gradient_square: float = 0.0

    def add(self, covariance_trace: float, gradient_square: float) -> None:
        """Takes one measurement."""
        self.count += 1
        self.covariance_trace += (covariance_trace - self.covariance_trace) / self.count
        self.gradient_square += (gradient_square - self.gradient_square) / self.count

    @property
    def scale_tokens(self) -> float | None:
        """The noise scale; None before there is one, or where the mean of |G|^2 is not above 0."""
        if not self.count or self.gradient_square <= 0:
            return None
        return self.covariance_trace / self.gradient_square
