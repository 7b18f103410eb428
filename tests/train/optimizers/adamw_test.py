# SPDX-License-Identifier: Apache-2.0
"""AdamW against its algorithm in NumPy, PyTorch's, and Optax's own chain."""

import jax
import numpy as np
import optax
import pytest
import tiny_optimizer as tiny

from midjax import trees
from midjax.train.optimizers import optimizer

LR = 0.05


def adam(gradients, b1=0.9, b2=0.95, eps=1e-8):
    """Algorithm 1 of 1412.6980 on one array: its directions."""
    mu = nu = 0.0
    for t, g in enumerate(gradients, 1):
        mu = b1 * mu + (1 - b1) * g
        nu = b2 * nu + (1 - b2) * g**2
        yield mu / (1 - b1**t) / (np.sqrt(nu / (1 - b2**t)) + eps)


@pytest.mark.parametrize(
    "rules, decaying",
    [
        ({}, tiny.DECAYING),
        ({"decay_rules": {"layers/w.*": 0.5, "(?!layers/w).*": 0.0}}, {}),
    ],
)
def test_20_updates_against_the_paper(rules, decaying):
    found, state = tiny.trained(tiny.adamw_config(**rules), LR)
    gradients = [tiny.clipped(g) for g in tiny.gradients(20)]
    for name, p in tiny.arrays(0).items():
        half = not decaying and name.startswith("layers/w")
        decay = 0.1 if name in decaying else 0.05 if half else 0.0
        for direction in adam([g[name] for g in gradients]):
            p = p - LR * (direction + decay * p)
        np.testing.assert_allclose(found[name], p, rtol=2e-5, atol=2e-6, err_msg=name)
    assert int(state["adam_count"]) == 20


def test_20_updates_against_pytorch():
    torch = pytest.importorskip("torch")
    found, _ = tiny.trained(tiny.adamw_config(), LR)
    params = {name: torch.nn.Parameter(torch.tensor(x)) for name, x in tiny.arrays(0).items()}
    groups = [
        {"params": [p for n, p in params.items() if (n in tiny.DECAYING) is decays],
         "weight_decay": 0.1 * decays}
        for decays in (True, False)
    ]  # fmt: skip
    theirs = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=1e-8)
    for gradient in tiny.gradients(20):
        for name, p in params.items():
            p.grad = torch.tensor(gradient[name])
        torch.nn.utils.clip_grad_norm_(params.values(), 1.0)
        theirs.step()
    for name, p in params.items():
        np.testing.assert_allclose(found[name], p.detach(), rtol=2e-5, atol=5e-6, err_msg=name)


def test_bit_for_bit_what_optax_chains():
    names = ("embed", "layers/wq", "layers/attn_norm")

    def small(seed):
        return tiny.tree({name: tiny.arrays(seed)[name] for name in names})

    params, made = small(0), optimizer.make(tiny.adamw_config())
    chain = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b1=0.9, b2=0.95, eps=1e-8),
        optax.add_decayed_weights(
            0.1, mask=trees.nested({name: name in tiny.DECAYING for name in names})
        ),
    )
    ours, theirs = made.init(params), chain.init(params)
    update, their_update = jax.jit(made.update), jax.jit(chain.update)
    for seed in (1, 2, 3):
        a, ours = update(small(seed), ours, params)
        b, theirs = their_update(small(seed), theirs, params)
        assert all((x == y).all() for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))
    for kind in ("mu", "nu"):
        pairs = zip(
            jax.tree.leaves(ours["moments"][kind]),
            jax.tree.leaves(getattr(theirs[1], kind)),
            strict=True,
        )
        assert all((x == y).all() for x, y in pairs)


@pytest.mark.parametrize(
    "change",
    [{"b1": 1.0}, {"b2": -0.1}, {"eps": 0.0}, {"weight_decay": -1.0}, {"clip_norm": 0.0},
     {"b2": 0.999, "nu_dtype": "bfloat16"}, {"decay_rules": {"(": 1.0}},
     {"decay_rules": {".*": -1.0}}],
)  # fmt: skip
def test_bad_numbers(change):
    with pytest.raises(ValueError, match=r"AdamW\."):
        tiny.adamw_config(**change)
