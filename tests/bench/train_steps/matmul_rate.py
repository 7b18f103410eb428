# SPDX-License-Identifier: Apache-2.0
"""The machine's own rate of matrix products, in the place of an update: `matmul_rate.py - xla`."""

import sys
from collections.abc import Callable
from typing import Any

import contest
import numpy as np

SIDE, PRODUCTS = 2048, 10


def make(_: Any) -> tuple[Callable[[], float], int]:
    x = np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32)
    if sys.argv[2] == "torch":
        import torch

        y = torch.from_numpy(x)
        return lambda: float(sum((y @ y)[0, 0] for _ in range(PRODUCTS))), 0
    import jax

    product, z = jax.jit(lambda x: x @ x), jax.device_put(x)
    return lambda: float(sum(product(z)[0, 0] for _ in range(PRODUCTS))), 0


if __name__ == "__main__":
    contest.serve(make)
