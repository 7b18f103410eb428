# SPDX-License-Identifier: Apache-2.0
"""Special tokens of the data that the checkpoint seems never to have seen.

Chat markers among mid-training data, whose embeddings the base model never learnt, have cost whole
abilities. A checkpoint shows it: Adam's second moment of a row is exactly 0 where no gradient ever
reached it (not with a tied head, which moves every row), and rows that were never learnt are far
shorter than the others.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from midjax import trees
from midjax.model import sharding
from midjax.train import step as step_lib
from midjax.train.optimizers import optimizer as optimizer_lib

# Rows of learnt tokens lie within a factor of two or three of the median.
SHORT = 0.1


def warnings(
    state: step_lib.TrainState,
    special: Mapping[str, tuple[int, int]],
    *,
    tied_head: bool,
    moments_kept: bool,
) -> list[str]:
    """One sentence for each token that looks untrained; none is no proof that all are.

    Args:
      state: as the run begins.
      special: token -> (id, times in the data), `loader.Opened.special_tokens`.
      tied_head: whether the head is the embedding table.
      moments_kept: whether the moments are the checkpoint's. Of optimizers without Adam's mean of
        squares of the embedding, only lengths are looked at.
    """
    if not special:
        return []
    embed_VD = state.params["embed"]
    second_VD = None
    if moments_kept and not tied_head:
        moments = optimizer_lib.to_parts(state.opt_state)["moments"]
        second_VD = moments.get("nu", {}).get("embed")
    names, ids = list(special), np.array([key for key, _ in special.values()])
    norms, median, untouched = jax.device_get(_measure(embed_VD, second_VD, ids))
    told = []
    for name, norm, never in zip(names, norms, untouched, strict=True):
        evidence = []
        if never:
            evidence.append("no gradient ever reached its embedding")
        if norm < SHORT * median:
            evidence.append(f"its embedding has {norm / median:.1%} of the median length")
        if evidence:
            told.append(
                f"the data has {name!r} {special[name][1]} times, and the checkpoint seems never "
                f"to have seen it: {' and '.join(evidence)}. Keep it out, unless the model is "
                "meant to learn it here."
            )
    return told


@jax.jit
def _measure(embed_VD: Any, second_VD: Any, ids: Any) -> tuple[Any, ...]:
    """(lengths of rows [ids], median length of all rows, whether a row never had a gradient)."""
    lengths_V = jnp.linalg.norm(embed_VD.astype(jnp.float32), axis=1)
    untouched = jnp.zeros(ids.shape, bool)
    if second_VD is not None:
        untouched = (trees.near(second_VD)[ids] == 0).all(axis=1)
    # Whole on every process, wherever the embedding lies.
    found = lengths_V[ids], jnp.median(lengths_V), untouched
    return tuple(sharding.constrain(x, (None,) * x.ndim) for x in found)
