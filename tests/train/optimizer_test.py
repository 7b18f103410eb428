# SPDX-License-Identifier: Apache-2.0
"""AdamW against its update rule written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run as tiny

from midjax.model import architecture, transformer
from midjax.train import optimizer as optimizer_lib

CONFIG = {
    "b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "decay_embedding": False,
    "decay_norms": False, "clip_norm": 1.0, "moments_dtype": "float32",
}  # fmt: skip


def config(**kwargs):
    return optimizer_lib.AdamW(**(CONFIG | kwargs))


def trees(seed):
    rng = np.random.default_rng(seed)
    return {
        "embed": rng.normal(size=(5, 3)),
        "final_norm": rng.normal(size=3),
        "layers": {
            "attn_norm": rng.normal(size=(2, 3)),
            "q_bias": rng.normal(size=(2, 4)),
            "wq": rng.normal(size=(2, 3, 4)),
        },
    }


def reference(config, params, gradients, lr):
    """Algorithm 2 of 1711.05101 with a global-norm clip, float64."""
    p, mu, nu = dict(params), {}, {}
    for t, g in enumerate(gradients, 1):
        norm = np.sqrt(sum((x**2).sum() for x in g.values()))
        for name in p:
            x = g[name] * min(1.0, config.clip_norm / norm)
            mu[name] = config.b1 * mu.get(name, 0) + (1 - config.b1) * x
            nu[name] = config.b2 * nu.get(name, 0) + (1 - config.b2) * x**2
            step = (mu[name] / (1 - config.b1**t)) / (
                np.sqrt(nu[name] / (1 - config.b2**t)) + config.eps
            )
            decays = {
                "embed": config.decay_embedding,
                "final_norm": config.decay_norms,
                "layers/attn_norm": config.decay_norms,
                "layers/q_bias": config.decay_norms,
                "layers/wq": True,
            }[name]
            p[name] = p[name] - lr(t - 1) * (step + config.weight_decay * decays * p[name])
    return p


def flat(tree):
    return {"/".join(str(k.key) for k in path): np.asarray(x, np.float64)
            for path, x in jax.tree_util.tree_leaves_with_path(tree)}  # fmt: skip


@pytest.mark.parametrize("decay_embedding", [False, True])
@pytest.mark.parametrize("decay_norms", [False, True])
def test_three_updates_against_the_rule(decay_embedding, decay_norms):
    c = config(decay_embedding=decay_embedding, decay_norms=decay_norms)
    optimizer = optimizer_lib.make(c)
    params = jax.tree.map(jnp.float32, trees(0))
    state = optimizer.init(params)
    gradients = [trees(seed) for seed in (1, 2, 3)]
    for s, g in enumerate(gradients):
        updates, state = optimizer.update(jax.tree.map(jnp.float32, g), state, params)
        params = jax.tree.map(lambda p, u, s=s: p - 0.1 / (s + 1) * u, params, updates)
    expected = reference(c, flat(trees(0)), [flat(g) for g in gradients], lambda s: 0.1 / (s + 1))
    for name, value in flat(params).items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-5, atol=1e-6)


def test_every_parameter_of_a_model_has_a_rule():
    model = tiny.model(
        norm="layer", qkv_bias=True, out_bias=True, mlp_bias=True, head_bias=True, qk_norm="head",
        experts=architecture.Experts(count=2, per_token=1, ffn_dim=8), dense_layers=(0,),
    )  # fmt: skip
    params = transformer.abstract(model)
    for decay_norms in (False, True):
        mask = optimizer_lib.decay_mask(config(decay_norms=decay_norms), params)
        for name, decays in flat(mask).items():
            small = name.endswith(("norm", "bias"))
            assert bool(decays) is (name != "embed" and (not small or decay_norms)), name
    with pytest.raises(ValueError, match="No rule says whether the parameter 'w_new' decays"):
        optimizer_lib.decay_mask(config(), {"layers": {"w_new": 0}})


def test_state_round_trips_by_name_and_keeps_its_structure():
    optimizer = optimizer_lib.make(config())
    params = jax.tree.map(jnp.float32, trees(0))
    state = optimizer.init(params)
    _, moved = optimizer.update(jax.tree.map(jnp.float32, trees(1)), state, params)
    parts = optimizer_lib.to_parts(moved)
    assert int(parts["adam_count"]) == 1
    rebuilt = optimizer_lib.from_parts(state, parts)
    assert jax.tree.structure(rebuilt) == jax.tree.structure(state) == jax.tree.structure(moved)
    assert all((a == b).all() for a, b in zip(*map(jax.tree.leaves, (rebuilt, moved)), strict=True))
    kept = optimizer_lib.from_parts(state, {"adam_count": parts["adam_count"]})
    assert int(kept["adam"].count) == 1 and not np.any(kept["adam"].mu["embed"])


def test_moments_dtype_is_that_of_mu():
    optimizer = optimizer_lib.make(config(moments_dtype="bfloat16"))
    state = optimizer.init(jax.tree.map(jnp.float32, trees(0)))
    assert {x.dtype.name for x in jax.tree.leaves(state["adam"].mu)} == {"bfloat16"}
    assert {x.dtype.name for x in jax.tree.leaves(state["adam"].nu)} == {"float32"}


@pytest.mark.parametrize(
    "change", [{"b1": 1.0}, {"b2": -0.1}, {"eps": 0.0}, {"weight_decay": -1.0}, {"clip_norm": 0.0}]
)
def test_bad_numbers(change):
    with pytest.raises(ValueError, match=r"AdamW\."):
        config(**change)
