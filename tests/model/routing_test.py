# SPDX-License-Identifier: Apache-2.0
"""The choices and losses of routers against transformers', gradients included."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from midjax.model import architecture, routing

E, D = 6, 12


def experts(per_token, normalized=False, count=E):
    return architecture.Experts(count=count, per_token=per_token, ffn_dim=4, normalized=normalized)


def sparse(eps, count=E):
    return architecture.Experts(
        count=count, per_token=2, ffn_dim=4, routing="sparsemixer", sparsemixer_eps=eps
    )


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def theirs(name, per_token, normalized, router):
    """One of transformers' routers with these weights: x -> (logits, weights, experts)."""
    torch = pytest.importorskip("torch")
    module = pytest.importorskip(f"transformers.models.{name}.modeling_{name}")
    kind = {"mixtral": "MixtralTopKRouter", "qwen3_moe": "Qwen3MoeTopKRouter"}
    config = types.SimpleNamespace(
        num_experts_per_tok=per_token,
        num_local_experts=E,
        num_experts=E,
        hidden_size=D,
        norm_topk_prob=normalized,
    )
    made = getattr(module, kind.get(name, "OlmoeTopKRouter"))(config)
    with torch.no_grad():
        made.weight.copy_(torch.from_numpy(router.T.copy()))
    return made


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("per_token", range(1, E + 1))
@pytest.mark.parametrize(
    "name, normalized",
    [("mixtral", True), ("qwen3_moe", True), ("qwen3_moe", False), ("olmoe", False)],
)
def test_softmax_routing_is_that_of_transformers(name, normalized, per_token, seed):
    torch = pytest.importorskip("torch")
    x, router = normal(seed, 20, D), normal(seed + 10, D, E)
    _, want_weights, want_chosen = theirs(name, per_token, normalized, router)(torch.from_numpy(x))
    chosen, weights, _ = routing.route(
        experts(per_token, normalized), jnp.asarray(x), jnp.asarray(router), jnp.ones(20, bool)
    )
    np.testing.assert_array_equal(chosen, want_chosen.numpy())
    np.testing.assert_allclose(weights, want_weights.detach().numpy(), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("config", [experts(3), experts(2, normalized=True), sparse(0.1)])
def test_equal_scores_go_to_the_lowest_index(config):
    chosen, weights = routing.choose(config, jnp.zeros((2, E)))
    assert chosen.tolist() == [list(range(config.per_token))] * 2
    want = {3: [1 / 6] * 3, 2: [0.5, 0.5] if config.normalized else [1 / 6, 1 / 5]}
    np.testing.assert_allclose(weights, [want[config.per_token]] * 2, rtol=1e-6)


def sparsemixer(scores, eps, grad, training=False):
    """transformers' choices, weights, and gradient of the scores."""
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("transformers.models.phimoe.modeling_phimoe")
    leaf = torch.from_numpy(scores).requires_grad_()
    weights, chosen = module.sparsemixer(leaf, eps, training)
    (weights * torch.from_numpy(grad)).sum().backward()
    return chosen.numpy(), weights.detach().numpy(), leaf.grad.numpy()


def ours(scores, eps, grad):
    config = sparse(eps, scores.shape[1])

    def weighted(scores):
        chosen, weights = routing.choose(config, scores)
        return jnp.sum(weights * grad), (chosen, weights)

    found, (chosen, weights) = jax.grad(weighted, has_aux=True)(jnp.asarray(scores))
    return np.asarray(chosen), np.asarray(weights), np.asarray(found)


@pytest.mark.parametrize("count", [2, 3, 16])
@pytest.mark.parametrize("eps", [0.01, 0.3])
@pytest.mark.parametrize("shift", [-3.0, 0.0, 2.0])
def test_sparsemixer_is_that_of_transformers_at_inference(shift, eps, count):
    scores, grad = normal(3, 50, count) + np.float32(shift), normal(4, 50, 2)
    want, found = sparsemixer(scores, eps, grad), ours(scores, eps, grad)
    np.testing.assert_array_equal(found[0], want[0])
    np.testing.assert_allclose(found[1], want[1], atol=1e-6)
    np.testing.assert_allclose(found[2], want[2], atol=1e-6)
    # The threshold was in play: some scores were too far to share in the weights.
    whole = np.exp(scores.max(-1)) / np.exp(scores).sum(-1)
    assert (found[1][:, 0] > whole + 1e-3).any()


def test_sparsemixers_gradient_is_that_of_training_where_the_draw_is_the_largest():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    scores, grad = normal(5, 200, 4), normal(6, 200, 2)
    chosen, weights, want = sparsemixer(scores, 0.2, grad, training=True)
    our_chosen, our_weights, found = ours(scores, 0.2, grad)
    same = (chosen == our_chosen).all(axis=1)
    assert 50 < same.sum() < 200
    np.testing.assert_allclose(our_weights[same], weights[same], atol=1e-6)
    np.testing.assert_allclose(found[same], want[same], atol=1e-6)


def layers(count, tokens=30):
    """Logits and which tokens are valid."""
    logits = [2 * normal(20 + i, tokens, E) for i in range(count)]
    return logits, np.random.default_rng(9).random(tokens) < 0.7


def aux_of(config, logits, valid):
    # With the identity as the router the input is the logits.
    return routing.route(config, jnp.asarray(logits), jnp.eye(E), jnp.asarray(valid))[2]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("per_token", [1, 2, 4])
def test_balance_loss_is_that_of_transformers(per_token, count, masked):
    torch = pytest.importorskip("torch")
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    logits, valid = layers(count)
    valid = valid if masked else np.ones_like(valid)
    leaves = [torch.from_numpy(x).requires_grad_() for x in logits]
    mask = torch.from_numpy(valid.reshape(3, 10).astype(np.int64)) if masked else None
    want = mixtral.load_balancing_loss_func(tuple(leaves), E, per_token, mask)
    want.backward()

    def loss(logits):
        sums = [aux_of(experts(per_token), x, valid) for x in logits]
        total = jax.tree.map(lambda *x: sum(x), routing.Aux.zeros(experts(per_token)), *sums)
        return routing.balance_loss(total, experts(per_token))

    found, grads = jax.value_and_grad(loss)([jnp.asarray(x) for x in logits])
    np.testing.assert_allclose(found, want.detach().numpy(), rtol=1e-5)
    for one, leaf in zip(grads, leaves, strict=True):
        np.testing.assert_allclose(one, leaf.grad.numpy(), atol=1e-7)
        assert np.abs(one[valid]).max() > 1e-4 and not np.any(one[~valid])


def test_sums_are_those_of_the_valid_tokens():
    (logits,), valid = layers(1)
    aux = aux_of(experts(2), logits, valid)
    wide = logits[valid].astype(np.float64)
    z = np.exp(wide).sum(-1)
    order = np.argsort(-wide, axis=-1)[:, :2]
    assert aux.tokens == valid.sum() < 30
    np.testing.assert_array_equal(aux.chosen_E, np.bincount(order.ravel(), minlength=E))
    np.testing.assert_allclose(aux.probability_E, (np.exp(wide) / z[:, None]).sum(0), rtol=1e-5)
    np.testing.assert_allclose(aux.log_z_squared, np.square(np.log(z)).sum(), rtol=1e-5)
    np.testing.assert_allclose(routing.router_z_loss(aux), np.square(np.log(z)).mean(), rtol=1e-5)


def test_losses_of_nothing_are_zero_and_of_even_routing_known():
    config = experts(3)
    none = aux_of(config, normal(0, 5, E), np.zeros(5, bool))
    jax.tree.map(np.testing.assert_array_equal, none, routing.Aux.zeros(config))
    assert routing.balance_loss(none, config) == 0 and routing.router_z_loss(none) == 0
    # Every expert the best of as many tokens: K, whatever the probabilities' spread.
    even = aux_of(config, np.concatenate([np.roll(np.arange(E), i)[None] for i in range(E)]) * 1.0,
                  np.ones(E, bool))  # fmt: skip
    np.testing.assert_allclose(routing.balance_loss(even, config), 3.0, rtol=1e-6)


def test_router_is_float32_whatever_the_input():
    x, router = jnp.asarray(normal(1, 40, D), jnp.bfloat16), normal(2, D, E)
    _, weights, aux = routing.route(
        experts(E), x, jnp.asarray(router, jnp.bfloat16), jnp.ones(40, bool)
    )
    logits = np.asarray(x, np.float64) @ np.asarray(jnp.asarray(router, jnp.bfloat16), np.float64)
    share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights, -np.sort(-share, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(aux.probability_E, share.sum(0), rtol=1e-5)
