# SPDX-License-Identifier: Apache-2.0
"""pass@k without bias (Chen et al. 2021, 2107.03374, equation 1)."""

import math


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): the chance that of k samples, drawn from n of which c passed, one
    passes.

    Raises:
      ValueError: k is more than the samples, or the counts do not fit each other.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs {k} samples or more, and there are {samples}.")
    if not 0 <= passed <= samples:
        raise ValueError(f"{passed} of {samples} samples cannot have passed.")
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)
