# SPDX-License-Identifier: Apache-2.0
"""The pure step: (state, batch) -> (state, metrics)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from midjax.batches import batch as batch_lib
from midjax.model import architecture, moe, transformer
from midjax.model import loss as model_loss
from midjax.train import ema as ema_lib
from midjax.train import guard as guard_lib
from midjax.train import layer_norms, noise

Metrics = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """What an update changes.

    Attributes:
      step: updates since the run began, skipped ones included, int32 scalar.
      schedule_count: position on the learning rate curve, int32 scalar. It moves with every batch,
        applied or skipped: a decay ends where its tokens do.
      params: model parameters.
      opt_state: moments and their age, see `optimizers`.
      guard: the history that spikes are told by; None without `Spikes`.
      ema: the average of the parameters, float32; None without `Ema`.
    """

    step: jax.Array
    schedule_count: jax.Array
    params: Any
    opt_state: Any
    guard: guard_lib.State | None = None
    ema: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """What is minimised: mean cross-entropy + z_loss_weight * mean log(Z)^2.

    Means are over all loss-bearing tokens of the global batch, so a row with more padding counts
    less, and microbatches add up to the whole batch.

    Attributes:
      z_loss_weight: PaLM's auxiliary loss (2204.02311, section 5); 0 for none. Deep anneals want
        it: OLMo uses 1e-5, Marin 1e-4.
      balance_loss_weight: of the mean over layers of `moe.balance_loss` (2101.03961, equation 4),
        which keeps the experts of each layer evenly used; 0 for none. It is a product of two
        means, taken over each microbatch and all of its devices.
      router_z_loss_weight: of the mean over layers of `moe.router_z_loss`; 0 for none.
    """

    z_loss_weight: float
    balance_loss_weight: float = 0.0
    router_z_loss_weight: float = 0.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if (value := getattr(self, field.name)) < 0:
                raise ValueError(f"Loss.{field.name} must be 0 or more, got {value}.")


def loss_and_sums(
    model: architecture.TransformerConfig,
    loss: Loss,
    sources: int,
    params: Any,
    batch: batch_lib.Batch,
    total_weight: jax.Array,
    total_tokens: jax.Array,
) -> tuple[jax.Array, tuple[dict[str, Any], jax.Array]]:
    """The part of the objective that these rows bring, and the sums behind the metrics.

    Args:
      model, loss: configurations.
      sources: number of sources, for the sums per source.
      params: model parameters.
      batch: rows of the global batch, or some of them.
      total_weight: loss weight of the *global* batch.
      total_tokens: places of the *global* batch that are not padding.

    Returns:
      A scalar, and {"nll": scalar, "z": scalar, "nll_by_source": [sources],
      "weight_by_source": [sources]} as sums in nats, with "routers": moe.Aux for a model with
      experts; and the mean loss of each row, [B], 0 where none of it bears loss.
    """
    hidden, routers = transformer.forward(
        model, params, batch.tokens, batch.segments, batch.positions
    )
    minimised, (nll, log_z) = model_loss.objective(
        model,
        params,
        hidden,
        batch.targets,
        batch.weights / total_weight,
        loss.z_loss_weight,
    )
    # Selected, not multiplied, as in the objective itself.
    weighted = jnp.where(batch.weights > 0, batch.weights * nll, 0.0)
    z = jnp.where(batch.weights > 0, batch.weights * jnp.square(log_z), 0.0)
    here = batch.source[..., None] == jnp.arange(sources)
    sums: dict[str, Any] = {
        "nll": weighted.sum(),
        "z": z.sum(),
        "nll_by_source": jnp.where(here, weighted[..., None], 0.0).sum((0, 1)),
        "weight_by_source": jnp.where(here, batch.weights[..., None], 0.0).sum((0, 1)),
    }
    if model.experts is not None and routers is not None:
        sums["routers"] = routers
        balance, router_z = _router_losses(model.experts, routers)
        added = loss.balance_loss_weight * balance + loss.router_z_loss_weight * router_z
        # These rows' share of the batch: a mean over tokens, as the rest of the objective is.
        minimised += added * routers.tokens[0] / total_tokens
    return minimised, (sums, weighted.sum(1) / jnp.maximum(batch.weights.sum(1), 1.0))


def _summed(
    of_rows: Callable[[Any, batch_lib.Batch], tuple[Any, jax.Array]],
    params: Any,
    batch: batch_lib.Batch,
    microbatches: int,
    of_part: Callable[[Any], Any],
) -> tuple[Any, jax.Array, Any]:
    """`of_rows(params, rows)`: (sums over the microbatches, a number for each row of the batch).

    Microbatch m takes the rows m, m + M, ...: every device keeps its own. Third comes `of_part` of
    the sums of each microbatch, stacked.
    """
    if microbatches == 1:
        sums, by_row = of_rows(params, batch)
        return sums, by_row, jax.tree.map(lambda x: x[None], of_part(sums))

    def split(x: jax.Array) -> jax.Array:
        return x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1)

    def accumulate(carry: Any, rows: batch_lib.Batch) -> tuple[Any, tuple[jax.Array, Any]]:
        sums, by_row = of_rows(params, rows)
        return jax.tree.map(jnp.add, carry, sums), (by_row, of_part(sums))

    parts = jax.tree.map(split, batch)
    shapes, _ = jax.eval_shape(of_rows, params, jax.tree.map(lambda x: x[0], parts))
    # Sums of gradients in float32, whatever the parameters are.
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, _summed_in(s.dtype)), shapes)
    summed, (by_row, of_parts) = jax.lax.scan(accumulate, zeros, parts)
    return summed, by_row.swapaxes(0, 1).reshape(-1), of_parts


def _router_losses(experts: architecture.Experts, routers: moe.Aux) -> tuple[jax.Array, jax.Array]:
    """Means over layers of the balance loss and of the router z-loss."""
    balance = jax.vmap(lambda aux: moe.balance_loss(aux, experts))(routers)
    return balance.mean(), jax.vmap(moe.router_z_loss)(routers).mean()


def _router_metrics(experts: architecture.Experts, routers: moe.Aux) -> Metrics:
    """What the routers did in the whole batch, its microbatches taken together."""
    balance, router_z = _router_losses(experts, routers)
    every = jnp.maximum(routers.chosen_E.sum(axis=1, keepdims=True), 1.0)
    return {
        "balance_loss": balance,
        "router_z_loss": router_z,
        "expert_load_max": (routers.chosen_E / every).max() * experts.count,
    }


def _gradients(
    objective: Callable[..., Any],
    params: Any,
    batch: batch_lib.Batch,
    microbatches: int,
    noise_is_due: jax.Array | None,
) -> tuple[Any, dict[str, Any], jax.Array, Any]:
    """Gradient, sums and loss by row of a batch; squares and weights of its parts where asked.

    Args:
      objective: `loss_and_sums` from its parameters on.
      params, batch, microbatches: of the step.
      noise_is_due: whether the squares are wanted of this batch; None where they never are.
    """
    weight = jnp.maximum(batch.weights.sum(), 1.0)
    tokens = jnp.maximum((batch.segments > 0).sum(), 1)
    of_objective = jax.grad(lambda p, rows: objective(p, rows, weight, tokens), has_aux=True)

    def of_rows(params: Any, rows: batch_lib.Batch) -> tuple[Any, jax.Array]:
        grads, (sums, by_row) = of_objective(params, rows)
        return (grads, sums), by_row

    def of_part(part: Any) -> Any:
        if noise_is_due is None:
            return {}
        grads, sums = part
        square = jax.lax.cond(noise_is_due, _square, lambda _: jnp.float32(0), grads)
        return {"square": square, "weight": sums["weight_by_source"].sum()}

    (grads, sums), by_row, parts = _summed(of_rows, params, batch, microbatches, of_part)
    return grads, sums, by_row, parts


def make_train_step(
    model: architecture.TransformerConfig,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    learning_rate: Callable[[jax.Array], jax.Array],
    *,
    sources: int,
    microbatches: int,
    spikes: guard_lib.Spikes | None = None,
    layer_norms_every_steps: int | None = None,
    noise_every_steps: int | None = None,
    ema: ema_lib.Ema | None = None,
) -> Callable[[TrainState, batch_lib.Batch], tuple[TrainState, Metrics]]:
    """Builds the pure train step; the caller jits it.

    An update whose loss or gradient is not finite, or that is a spike, is skipped: parameters,
    moments, Adam's count and the history of the guard stay, the step and the schedule count on, and
    the metric `skipped` says why. A finite gradient of finite norm makes a finite update: its
    square, which moments hold, is a term of the norm's.
    """

    every = noise_every_steps

    def train_step(state: TrainState, batch: batch_lib.Batch) -> tuple[TrainState, Metrics]:
        grads, sums, loss_by_row, parts = _gradients(
            functools.partial(loss_and_sums, model, loss, sources),
            state.params,
            batch,
            microbatches,
            (state.step + 1) % every == 0 if every else None,
        )
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)  # for norms and moments
        lr = learning_rate(state.schedule_count)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        updates = jax.tree.map(lambda u: -lr.astype(u.dtype) * u, updates)
        params = optax.apply_updates(state.params, updates)
        metrics = _sums_as_metrics(model, sums) | {
            "loss_by_row": loss_by_row,
            "lr": lr,
            "grad_norm": optax.tree.norm(grads),
            "update_norm": optax.tree.norm(updates),
        }
        weight = sums["weight_by_source"].sum()
        why, history, limits = guard_lib.decide(
            spikes,
            state.guard,
            loss=metrics["loss"],
            grad_norm=metrics["grad_norm"],
            has_loss=weight > 0,
        )
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(why == guard_lib.APPLIED, new, old),
            (params, opt_state),
            (state.params, state.opt_state),
        )
        metrics |= {"param_norm": optax.tree.norm(params), "skipped": why, **limits}
        if layer_norms_every_steps:
            metrics["layer_norms"] = layer_norms.measure(
                (state.step + 1) % layer_norms_every_steps == 0,
                {"grad": grads, "update": updates, "param": params},
            )
        if every:
            metrics["noise"] = _noise(parts, metrics["grad_norm"], weight)
        average = state.ema
        if ema is not None:
            average = ema_lib.update(ema, average, params, why == guard_lib.APPLIED)
        after = TrainState(
            step=state.step + 1,
            schedule_count=state.schedule_count + 1,
            params=params,
            opt_state=opt_state,
            guard=history,
            ema=average,
        )
        return after, metrics

    return train_step


def _sums_as_metrics(model: architecture.TransformerConfig, sums: dict[str, Any]) -> Metrics:
    """Means over the whole batch, and what is logged by source, of `loss_and_sums`."""
    weight = jnp.maximum(sums["weight_by_source"].sum(), 1.0)
    metrics = {
        "loss": sums["nll"] / weight,
        "z_loss": sums["z"] / weight,
        "nll_by_source": sums["nll_by_source"],
        "weight_by_source": sums["weight_by_source"],
    }
    if model.experts is not None:
        metrics |= _router_metrics(model.experts, sums["routers"])
    return metrics


def _square(tree: Any) -> jax.Array:
    return jnp.square(optax.tree.norm(jax.tree.map(lambda x: x.astype(jnp.float32), tree)))


def _summed_in(dtype: Any) -> Any:
    floats = jnp.issubdtype(dtype, jnp.floating)
    return jnp.promote_types(dtype, jnp.float32) if floats else dtype


def _noise(parts: dict[str, Any], grad_norm: jax.Array, weight: jax.Array) -> dict[str, jax.Array]:
    """`noise.estimate` of microbatches whose gradients are shares of the whole batch's mean."""
    own = jnp.square(weight / jnp.maximum(parts["weight"], 1.0))
    return noise.estimate(
        own * parts["square"], parts["weight"], jnp.square(grad_norm), jnp.maximum(weight, 1.0)
    )


def leave_out(
    learning_rate: Callable[[jax.Array], jax.Array], sources: int, state: TrainState
) -> tuple[TrainState, Metrics]:
    """A step that is left out after a rollback: the counts go on, nothing is looked at."""
    unknown = jnp.float32(jnp.nan)
    names = ("loss", "z_loss", "grad_norm", "update_norm", "param_norm")
    metrics = dict.fromkeys(names, unknown) | {
        "lr": learning_rate(state.schedule_count),
        "skipped": jnp.int32(guard_lib.LEFT_OUT),
        "nll_by_source": jnp.zeros(sources),
        "weight_by_source": jnp.zeros(sources),
    }
    after = dataclasses.replace(state, step=state.step + 1, schedule_count=state.schedule_count + 1)
    return after, metrics
