# SPDX-License-Identifier: Apache-2.0
"""Which experts a token goes through, and what its router is judged by.

Shape suffixes: N tokens, D model width, E experts, K experts per token.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from midjax.model import architecture


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Aux:
    """What the losses of routers need, as sums over tokens; all of it float32.

    Sums of these over layers, devices and microbatches are again these: `jax.tree.map(jnp.add, a,
    b)`. Padding is in none of them.

    Attributes:
      tokens: scalar, tokens; one that passes several layers counts once in each.
      chosen_E: (token, slot) pairs that went to each expert; they sum to K * tokens.
      probability_E: sums of softmax(router's logits).
      log_z_squared: scalar, sum of logsumexp(router's logits)^2.
    """

    # Not checked: trees of shardings and the like have this structure too.
    tokens: Any
    chosen_E: Any
    probability_E: Any
    log_z_squared: Any

    @classmethod
    def zeros(cls, experts: architecture.Experts) -> "Aux":
        """The sums over no tokens."""
        none, none_E = jnp.zeros((), jnp.float32), jnp.zeros(experts.count, jnp.float32)
        return cls(tokens=none, chosen_E=none_E, probability_E=none_E, log_z_squared=none)


def balance_loss(aux: Aux, experts: architecture.Experts) -> Float32[Array, ""]:
    """E * sum over experts of (pairs per token that chose it) * (its mean probability).

    Switch Transformer's loss (2101.03961, eq. 4-6) in the scale of transformers'
    `load_balancing_loss_func`, where the chosen shares sum to K: K under uniform routing, K * E at
    the worst. Of the sums over several layers it is that function of all these layers' logits:
    their tokens are pooled before the product. The mean of the layers' own losses is another
    number: take `balance_loss` of each layer's Aux for it.

    The gradient goes through the probabilities alone: the choices are counts.
    """
    tokens = jnp.maximum(aux.tokens, 1.0)
    share_E = jax.lax.stop_gradient(aux.chosen_E / tokens)
    return experts.count * jnp.sum(share_E * (aux.probability_E / tokens))


def router_z_loss(aux: Aux) -> Float32[Array, ""]:
    """Mean over tokens of logsumexp(router's logits)^2 (ST-MoE, 2202.08906, eq. 5)."""
    return aux.log_z_squared / jnp.maximum(aux.tokens, 1.0)


def _at(values_NE: Array, chosen_NK: Array) -> Array:
    # A comparison and a sum, not a gather: the gradient is not a scatter.
    hit_NKE = chosen_NK[..., None] == jnp.arange(values_NE.shape[-1])
    return jnp.sum(jnp.where(hit_NKE, values_NE[:, None], 0.0), axis=-1)


def _sparsemixer(scores_NE: Array, eps: float) -> tuple[Array, Array]:
    chosen, weights, open_NE = [], [], scores_NE
    for _ in range(2):
        fixed_NE, fixed_open_NE = jax.lax.stop_gradient((scores_NE, open_NE))
        chosen_N1 = jnp.argmax(fixed_open_NE, axis=-1, keepdims=True)
        top_N1 = jnp.max(fixed_open_NE, axis=-1, keepdims=True)
        far_NE = (top_N1 - fixed_NE) / jnp.maximum(jnp.abs(fixed_NE), top_N1) > 2 * eps
        share_NE = jax.nn.softmax(jnp.where(far_NE, -jnp.inf, open_NE), axis=-1)
        chosen.append(chosen_N1)
        weights.append(_at(share_NE, chosen_N1))
        taken_NE = chosen_N1 == jnp.arange(scores_NE.shape[-1])
        open_NE = jnp.where(taken_NE, -jnp.inf, open_NE)
    return jnp.concatenate(chosen, axis=-1), jnp.concatenate(weights, axis=-1)


def choose(
    config: architecture.Experts, logits_NE: Float32[Array, "N E"]
) -> tuple[Int[Array, "N K"], Float32[Array, "N K"]]:
    """The experts of every token, best first, and the weights of their results.

    "softmax": the K largest of softmax(logits), weighted by it, divided by their sum if
    `config.normalized` (Mixtral, Qwen3-MoE; OLMoE does not). Equal ones: the lowest index first.

    "sparsemixer" (2409.12136) as transformers' Phi-3.5-MoE computes it outside of training: the
    largest score; then, without it, the next. Each is weighted by a softmax over those experts that
    are still open and whose score s has (top - s) / max(|s|, top) <= 2 * eps. This is the form in
    training too: transformers there draws the experts at random and scales some results by Heun's
    rule, which is not done here. The gradient goes through the two softmaxes and not through the
    choice and the threshold; for a token whose draws are the largest scores it is that of
    transformers in training.

    Args:
      config: of the experts.
      logits_NE: the router's.
    """
    if config.routing == "sparsemixer":
        assert config.sparsemixer_eps is not None
        return _sparsemixer(logits_NE, config.sparsemixer_eps)
    share_NE = jax.nn.softmax(logits_NE, axis=-1)
    _, chosen_NK = jax.lax.top_k(jax.lax.stop_gradient(share_NE), config.per_token)
    weight_NK = _at(share_NE, chosen_NK)
    if config.normalized:
        weight_NK = weight_NK / jnp.sum(weight_NK, axis=-1, keepdims=True)
    return chosen_NK, weight_NK


def route(
    config: architecture.Experts,
    x_ND: Float[Array, "N D"],
    router_DE: Float[Array, "D E"],
    valid_N: Bool[Array, "N"],
) -> tuple[Int[Array, "N K"], Float32[Array, "N K"], Aux]:
    """`choose` by the router's logits, and the sums over valid tokens. All of it in float32.

    Args:
      config: of the experts.
      x_ND: tokens.
      router_DE: the router.
      valid_N: False on padding, which is routed too but counted nowhere.
    """
    logits_NE = jnp.matmul(
        x_ND.astype(jnp.float32),
        router_DE.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,  # a TPU multiplies float32 as bfloat16 otherwise
    )
    chosen_NK, weight_NK = choose(config, logits_NE)
    valid_N1 = valid_N[:, None]
    hit_NKE = chosen_NK[..., None] == jnp.arange(config.count)
    log_z_N = jax.nn.logsumexp(logits_NE, axis=-1)
    aux = Aux(
        tokens=jnp.sum(valid_N, dtype=jnp.float32),
        chosen_E=jnp.sum(hit_NKE & valid_N1[..., None], axis=(0, 1), dtype=jnp.float32),
        probability_E=jnp.sum(jnp.where(valid_N1, jax.nn.softmax(logits_NE), 0.0), axis=0),
        log_z_squared=jnp.sum(jnp.where(valid_N, jnp.square(log_z_N), 0.0)),
    )
    return chosen_NK, weight_NK, aux
