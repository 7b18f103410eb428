# SPDX-License-Identifier: Apache-2.0
"""A small tree of midjax's own shapes, gradients for it, and optimizers run on them."""

import jax
import jax.numpy as jnp
import numpy as np

from midjax import trees
from midjax.train.optimizers import adafactor, adamw, lion, muon, optimizer

SHAPES = {
    "embed": (7, 6), "final_norm": (6,), "head": (6, 7), "layers/attn_norm": (2, 6),
    "layers/q_bias": (2, 2, 4), "layers/wq": (2, 6, 2, 4), "layers/wo": (2, 2, 4, 6),
    "layers/w_up": (2, 6, 10), "layers/expert_down": (2, 3, 10, 6),
}  # fmt: skip
# Written out here once more: what `matrices` says is tested with it. (stack, rows, columns)
MATRICES = {
    "embed": (1, 7, 6), "head": (1, 6, 7), "layers/wq": (2, 6, 8), "layers/wo": (2, 8, 6),
    "layers/w_up": (2, 6, 10), "layers/expert_down": (6, 10, 6),
}  # fmt: skip
DECAYING = set(MATRICES) - {"embed"}
AROUND = {"weight_decay": 0.1, "clip_norm": 1.0}
DTYPES = {"mu_dtype": "float32", "nu_dtype": "float32"}


def adamw_config(**kwargs) -> adamw.AdamW:
    return adamw.AdamW(**({"b1": 0.9, "b2": 0.95, "eps": 1e-8} | AROUND | DTYPES | kwargs))


def lion_config(**kwargs) -> lion.Lion:
    return lion.Lion(**({"b1": 0.9, "b2": 0.99, "mu_dtype": "float32"} | AROUND | kwargs))


def adafactor_config(**kwargs) -> adafactor.Adafactor:
    given = {
        "factored": True, "min_factored_dim": 2, "decay_exponent": 0.8, "eps": 1e-30,
        "clip_rms": 1.0, "scale_by_parameter": True, "min_parameter_rms": 1e-3, "b1": None,
        "mu_dtype": "float32",
    }  # fmt: skip
    return adafactor.Adafactor(**(given | AROUND | kwargs))


def muon_config(**kwargs) -> muon.Muon:
    given = {"b1": 0.9, "b2": 0.95, "eps": 1e-8, "beta": 0.95, "nesterov": True}
    return muon.Muon(**(given | {"scale": "match_adamw"} | AROUND | DTYPES | kwargs))


EVERY = {
    "adamw": adamw_config(), "lion": lion_config(), "muon": muon_config(),
    "adafactor": adafactor_config(), "adafactor-momentum": adafactor_config(b1=0.9),
}  # fmt: skip


def arrays(seed: int) -> dict[str, np.ndarray]:
    """Path -> float32 numbers, as float64."""
    rng = np.random.default_rng(seed)
    return {name: np.float64(rng.normal(size=s).astype(np.float32)) for name, s in SHAPES.items()}


def gradients(steps: int) -> list[dict[str, np.ndarray]]:
    """With norms between 0.2 and 5: a clip at 1 takes hold of some."""
    found = []
    for seed in range(1, steps + 1):
        tree = arrays(seed)
        norm = np.sqrt(sum(np.square(x).sum() for x in tree.values()))
        wanted = np.exp(np.random.default_rng(100 + seed).uniform(np.log(0.2), np.log(5)))
        found.append(
            {k: np.float64((x * wanted / norm).astype(np.float32)) for k, x in tree.items()}
        )
    return found


def clipped(gradient: dict[str, np.ndarray], most: float | None = 1.0) -> dict[str, np.ndarray]:
    norm = np.sqrt(sum(np.square(x).sum() for x in gradient.values()))
    factor = 1.0 if most is None else min(1.0, most / norm)
    return {name: x * factor for name, x in gradient.items()}


def tree(flat: dict[str, np.ndarray]):
    return trees.nested({name: jnp.float32(x) for name, x in flat.items()})


def flat(nested) -> dict[str, np.ndarray]:
    return {name: np.asarray(x, np.float64) for name, x in trees.named_leaves(nested)}


def trained(config: optimizer.Optimizer, lr: float):
    """(parameters after 20 updates on `gradients`, flat; the state)."""
    made = optimizer.make(config)

    @jax.jit
    def update(params, state, gradient):
        directions, state = made.update(gradient, state, params)
        return jax.tree.map(lambda p, d: p - lr * d, params, directions), state

    params = tree(arrays(0))
    state = made.init(params)
    for gradient in gradients(20):
        params, state = update(params, state, tree(gradient))
    return flat(params), state


def parts_of(name: str, array: np.ndarray) -> list[np.ndarray]:
    """Each layer's or expert's matrix or vector, as views into the array."""
    if name in MATRICES:
        return list(array.reshape(MATRICES[name]))
    return list(array.reshape(len(array), -1)) if name.startswith("layers/") else [array]
