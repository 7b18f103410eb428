# SPDX-License-Identifier: Apache-2.0
"""How sure a change between two models is: intervals by resampling the documents they both read.

    value of a model = mean over strata of (sum of its x / sum of size)

x and size are of a document, or of a block of documents: nats and bytes of a domain's blocks give
bits per byte, a right answer and 1 give an accuracy; subsets of a task are strata, so that the mean
is the macro average. The same draws count for both models ("paired"), so what is hard for both
cancels. Each stratum of n is drawn n - 1 times, with which the variance over draws is unbiased (Rao
and Wu 1988, JASA 83, 231-241; plain draws of n give narrow intervals where strata are small).

Two kinds of intervals, chosen by what was measured with 95 % asked (tests/evals/bootstrap_test.py):

- "bootstrap-t" (Efron and Tibshirani 1993, chapter 12) for losses: each draw's distance from the
  estimate in standard errors of that draw. It alone covers where few blocks are skewed. It takes 8
  documents in each stratum: of 4, one in 16 draws is one document three times, whose standard error
  is round-off and whose distance has no meaning. Below that losses have the other kind.
- "expanded percentile" (Hesterberg 2015, The American Statistician 69, 371-386) for shares of right
  answers: quantiles of the draws at the levels at which a normal has Student's t's quantiles, with
  Satterthwaite's degrees of freedom. Where few answers differ, draws without a difference have no
  standard error, and bootstrap-t has no bounds.

An interval is about the choice of documents. It says nothing of what another seed of the training
would change.
"""

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

Method = Literal["bootstrap-t", "expanded percentile"]
# Of each stratum, from which on draws have standard errors of their own.
LEAST_FOR_BOOTSTRAP_T = 8
# Standard errors that are a smaller share of the distance are round-off of sums that cancel.
_ROUND_OFF = 1e-6
# Variances that are a smaller share of what they are the difference of are, too.
_CANCELLED = 1e-14
# Numbers drawn at once, to bound memory.
_CHUNK = 1 << 21


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stratum:
    """The same n documents (or blocks) under two models; `size` is what the sums are divided by."""

    parent: Float[np.ndarray, " n"]
    now: Float[np.ndarray, " n"]
    size: Float[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """Ends, which may be infinite, and the method that gave them."""

    low: float
    high: float
    method: Method

    @property
    def ends(self) -> tuple[float, float]:
        return self.low, self.high


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """Values of both models: R draws, and the sample itself.

    P and N are parent and now; a covariance is [PP, PN, NN] of the two values.

    Attributes:
      parent, now: values in the sample.
      covariances: of each stratum's part in them, [S, 3].
      counts: documents of each stratum, [S].
      draws: values in the draws, [2, R].
      draw_covariances: of these, estimated in each draw, [3, R].
    """

    parent: float
    now: float
    covariances: Float[np.ndarray, "S 3"]
    counts: Float[np.ndarray, " S"]
    draws: Float[np.ndarray, "2 R"]
    draw_covariances: Float[np.ndarray, "3 R"]

    @property
    def can_vary(self) -> bool:
        """Whether every stratum has two documents or more, without which no spread is known."""
        return bool(self.counts.min() >= 2)


def draw(strata: Sequence[Stratum], *, resamples: int, seed: int, name: str) -> Drawn:
    """Draws the documents of each stratum, with replacement, for both models at once.

    Args:
      name: of the score: its draws don't depend on which other scores there are.
    """
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    share = 1 / len(strata)
    values, covariances = np.zeros(2), []
    draws, spread = np.zeros((2, resamples)), np.zeros((3, resamples))
    for stratum in strata:
        count, size = len(stratum.size), stratum.size.sum()
        at = np.array([stratum.parent.sum(), stratum.now.sum()]) / size
        rest = np.stack([stratum.parent, stratum.now]) - at[:, None] * stratum.size
        columns = _columns(rest, stratum.size)
        values += share * at
        whole = columns.sum(axis=0)[:, None]
        covariances.append(share**2 * _covariance(whole, np.zeros((2, 1)), count)[:, 0])
        sums = _sums(columns, resamples, generator)
        moved = sums[:2] / sums[2]
        draws += share * (at[:, None] + moved)
        spread += share**2 * _covariance(sums, moved, count - 1)
    return Drawn(
        parent=float(values[0]),
        now=float(values[1]),
        covariances=np.array(covariances),
        counts=np.array([len(stratum.size) for stratum in strata]),
        draws=draws,
        draw_covariances=spread,
    )


def _columns(rest: Any, size: Any) -> Float[np.ndarray, "n 9"]:
    p, n = rest
    return np.stack([p, n, size, p * p, p * n, n * n, p * size, n * size, size * size], axis=1)


def _covariance(sums: Any, moved: Any, count: int) -> Float[np.ndarray, "3 R"]:
    """[PP, PN, NN] of two ratios of sums, by their residuals around `moved` (the delta method)."""
    if count < 2:
        return np.full((3, sums.shape[1]), np.nan)
    dp, dn = moved
    square = sums[8]
    pp = sums[3] - 2 * dp * sums[6] + dp * dp * square
    pn = sums[4] - dn * sums[6] - dp * sums[7] + dp * dn * square
    nn = sums[5] - 2 * dn * sums[7] + dn * dn * square
    return np.stack([pp, pn, nn]) * count / (count - 1) / sums[2] ** 2


def _sums(columns: Any, resamples: int, generator: np.random.Generator) -> Any:
    """Sums of the columns over n - 1 documents drawn of n, [9, R]."""
    count = len(columns)
    draws = max(count - 1, 1)
    step = max(1, _CHUNK // count)
    found = []
    for first in range(0, resamples, step):
        rows = min(step, resamples - first)
        drawn = generator.integers(count, size=(rows, draws))
        drawn += count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        found.append(times.astype(np.float64) @ columns)
    return np.concatenate(found).T


def difference(drawn: Drawn, *, level: float, method: Method) -> Interval | None:
    """Interval of now - parent; None where no spread is known.

    Args:
      method: "bootstrap-t" where documents are enough for it, see the module's docstring.
    """
    gradient = np.array([[-1.0], [1.0]])
    term = _Term(
        value=drawn.now - drawn.parent,
        draws=drawn.draws[1] - drawn.draws[0],
        gradient=gradient,
        draw_gradients=gradient,
        drawn=drawn,
    )
    return _interval([term], level=level, method=method)


def log_ratio(
    drawn: Sequence[Drawn], weights: Sequence[float], *, level: float, method: Method
) -> Interval | None:
    """Interval of the sum over scores of weight * ln(now / parent).

    The scores are drawn independently of each other. All values are positive; None where no spread
    is known. `method` as in `difference`.
    """
    terms = []
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for one, weight in zip(drawn, weights, strict=True):
            at, draws = np.array([[one.parent], [one.now]]), one.draws
            sign = np.array([[-weight], [weight]])
            terms.append(
                _Term(
                    value=weight * float(np.log(one.now) - np.log(one.parent)),
                    draws=weight * np.log(draws[1] / draws[0]),
                    gradient=sign / at,
                    draw_gradients=sign / draws,
                    drawn=one,
                )
            )
        return _interval(terms, level=level, method=method)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Term:
    """A function of one score's two values: in the sample, in the draws, and its gradients."""

    value: float
    draws: Float[np.ndarray, " R"]
    gradient: Float[np.ndarray, "2 1"]
    draw_gradients: Float[np.ndarray, "2 _"]
    drawn: Drawn

    def variances(self) -> Float[np.ndarray, " S"]:
        found = _quadratic(self.gradient, self.drawn.covariances.T)
        apart = _quadratic(self.gradient, self.drawn.covariances.T * [[1], [0], [1]])
        return np.where(found <= _CANCELLED * apart, 0, found)

    def draw_variances(self) -> Float[np.ndarray, " R"]:
        return np.maximum(_quadratic(self.draw_gradients, self.drawn.draw_covariances), 0)


def _quadratic(gradient: Any, covariance: Any) -> Any:
    p, n = gradient
    return p * p * covariance[0] + 2 * p * n * covariance[1] + n * n * covariance[2]


def _interval(terms: Sequence[_Term], *, level: float, method: Method) -> Interval | None:
    if not all(term.drawn.can_vary for term in terms):
        return None
    value = sum(term.value for term in terms)
    draws = np.sum([term.draws for term in terms], axis=0)
    variances = np.concatenate([term.variances() for term in terms])
    counts = np.concatenate([term.drawn.counts for term in terms])
    error, tail = float(np.sqrt(variances.sum())), (1 - level) / 2
    if np.isnan(error):  # of numbers that are too large or too small
        return None
    if counts.min() < LEAST_FOR_BOOTSTRAP_T:
        method = "expanded percentile"
    if not error > 0:  # all documents differ alike, or not at all: so do all draws
        return Interval(low=value, high=value, method=method)
    if method == "bootstrap-t":
        errors = np.sqrt(np.sum([term.draw_variances() for term in terms], axis=0))
        least, most = _distances(draws - value, errors, tail)
        return Interval(low=value - most * error, high=value - least * error, method=method)
    from scipy import special  # a fifth of a second of every start, and most need none of it

    freedom = variances.sum() ** 2 / (variances**2 / (counts - 1)).sum()
    expanded = float(special.ndtr(special.stdtrit(freedom, tail)))
    low, high = np.nanquantile(draws, [expanded, 1 - expanded])
    return Interval(low=float(low), high=float(high), method=method)


def _distances(
    moved: Float[np.ndarray, " R"], errors: Float[np.ndarray, " R"], tail: float
) -> tuple[float, float]:
    """Quantiles of moved / errors, which are infinite where an error is round-off."""
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.where(errors > _ROUND_OFF * np.abs(moved), moved / errors, moved * np.inf)
        distance[moved == 0] = 0.0
        low, high = np.nanquantile(distance, [tail, 1 - tail])
    # Between two infinite distances numpy's quantile is not a number.
    return -np.inf if np.isnan(low) else float(low), np.inf if np.isnan(high) else float(high)
