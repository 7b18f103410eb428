# SPDX-License-Identifier: Apache-2.0
"""MaxText's train step, as its loop jits it, for the Llama of a size, on one CPU device."""

import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import contest
import jax
import jax.numpy as jnp
import maxtext
import numpy as np
from flax import nnx
from flax.linen import partitioning
from maxtext.trainers.pre_train import train
from maxtext.utils import sharding, train_utils


def arguments(size: contest.Size) -> list[str]:
    settings = {
        "run_name": "bench", "base_output_directory": tempfile.mkdtemp(), "hardware": "cpu",
        "dataset_type": "synthetic", "enable_checkpointing": False, "steps": 100_000,
        "skip_jax_distributed_system": True, "enable_goodput_recording": False,
        "decoder_block": "llama2", "base_emb_dim": size.dim, "head_dim": size.head_dim,
        "base_num_decoder_layers": size.layers, "base_num_query_heads": size.heads,
        "base_num_kv_heads": size.kv_heads, "base_mlp_dim": size.ffn_dim,
        "vocab_size": size.vocab_size, "logits_via_embedding": False,
        "normalization_layer_epsilon": contest.NORM_EPS, "rope_max_timescale": 10_000,
        "max_target_length": size.row_tokens, "per_device_batch_size": size.batch_rows,
        "dtype": "float32", "weight_dtype": "float32", "attention": "dot_product",
        "remat_policy": "minimal", "opt_type": "adamw", "learning_rate": contest.LR,
        "warmup_steps_fraction": 0.0, "adam_b1": contest.B1, "adam_b2": contest.B2,
        "adam_eps": contest.EPS, "adam_weight_decay": contest.WEIGHT_DECAY,
        "gradient_clipping_threshold": contest.CLIP_NORM,
    }  # fmt: skip
    base = pathlib.Path(maxtext.__file__).parent / "configs" / "base.yml"
    return ["train", str(base), *(f"{name}={value}" for name, value in settings.items())]


def batch(size: contest.Size) -> dict[str, np.ndarray]:
    tokens, targets = contest.tokens(size)
    places = np.broadcast_to(np.arange(size.row_tokens, dtype=np.int32), tokens.shape)
    found = {"inputs": tokens, "targets": targets}
    for name in ("inputs", "targets"):
        found |= {f"{name}_position": places, f"{name}_segmentation": np.ones_like(tokens)}
    return found


def make(size: contest.Size) -> tuple[Callable[[], float], int]:
    config, recorder = train.initialize(arguments(size))
    made: Any = train_utils.setup_train_loop(config, recorder)
    _, _, shardings, _, mesh, *_, state = made
    graph, state = nnx.split(state)
    of_params, shardings = sharding.maybe_update_params_sharding_with_opt(config, shardings)
    step, _ = train_utils.jit_train_and_eval_step(
        config, graph, mesh, state, shardings, train.train_step, train.eval_step, None, of_params
    )
    where = sharding.get_input_data_sharding(config, mesh)
    placed = jax.device_put(batch(size), where)

    def update() -> float:
        nonlocal state
        with jax.set_mesh(mesh), partitioning.axis_rules(config.logical_axis_rules):
            state, metrics = step(state, placed)
        jax.block_until_ready(state)
        return float(metrics["scalar"]["learning/loss"])

    return update, count(state)


def count(state: Any) -> int:
    """Parameters of the model, without the state of its optimizer and of random numbers."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    model = [x for path, x in leaves if "optimizer" not in jax.tree_util.keystr(path)]
    return sum(x.size for x in model if jnp.issubdtype(x.dtype, jnp.floating))


if __name__ == "__main__":
    contest.serve(make)
