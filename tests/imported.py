# SPDX-License-Identifier: Apache-2.0
"""Foreign checkpoints that tests import: the real ones, and how to bring them in."""

import json
import pathlib
import typing

import jax
import jax.numpy as jnp
import numpy as np

from midjax import checkpoint, demo_data
from midjax.batches import batch
from midjax.importing import llama2c, maxtext, maxtext_schedule, recipe
from midjax.model import architecture, rope, sharding, transformer
from midjax.train.optimizers import optimizer

DATA = pathlib.Path(__file__).parent / "data"
STORIES = pathlib.Path(demo_data.__file__).parent / "stories260K"
MESH = sharding.Mesh(data=1, fsdp=1, tensor=1)
PLAIN = rope.Rope(theta=10000.0, scaling=rope.RopeScaling(kind="none"))


EXPERTS = architecture.Experts(count=4, per_token=2, ffn_dim=16, normalized=True)
GEMMA = {"tied_head": True, "norm_eps": 1e-6, "activation": "gelu_tanh", "logits_scale": 32**-0.5}
WINDOWS = {"window_tokens": 8, "norm_eps": 1e-6}
SCALED = {"attention_scale": None}
# What makes a model of each block out of that of maxtext_tiny.
BLOCK_MODELS: dict[str, dict[str, typing.Any]] = {
    "llama2": {},
    "mistral": {},
    "mixtral": {"experts": EXPERTS},
    "qwen2": SCALED | {"qkv_bias": True},
    "qwen3": SCALED | {"qk_norm": "head"},
    "qwen3_moe": SCALED | {"qk_norm": "head", "experts": EXPERTS},
    "gemma": GEMMA,
    "gemma2": GEMMA
    | WINDOWS
    | {"layers": 4, "layer_pattern": ("window", "full"), "norm_placement": "both",
       "attention_softcap": 50.0, "logits_softcap": 30.0},
    "gemma3": GEMMA
    | WINDOWS
    | SCALED
    | {"layers": 8, "layer_pattern": ("window",) * 5 + ("full",), "norm_placement": "both",
       "qk_norm": "head", "window_rope": rope.Rope(theta=1e3, scaling=PLAIN.scaling)},
    "olmo3": SCALED
    | WINDOWS
    | {"layers": 8, "layer_pattern": ("window",) * 3 + ("full",), "norm_placement": "post",
       "qk_norm": "whole"},
}  # fmt: skip


def model(**kwargs) -> architecture.TransformerConfig:
    """That of maxtext_tiny."""
    given = {
        "vocab_size": 128, "dim": 32, "layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 8,
        "ffn_dim": 64, "norm_eps": 1e-5, "tied_head": False, "context_tokens": 64, "rope": PLAIN,
        "initializer_std": 0.02, "param_dtype": "float32", "compute_dtype": "float32",
        "remat": "none", "loss_chunk_tokens": 64, "attention_scale": 1.0,
    }  # fmt: skip
    return architecture.TransformerConfig(**(given | kwargs))


def schedule(**kwargs) -> maxtext_schedule.MaxTextSchedule:
    """That of maxtext_tiny."""
    given = {
        "learning_rate": 1e-3, "learning_rate_schedule_steps": 32,
        "learning_rate_final_fraction": 0.1, "warmup_steps_fraction": 0.1,
        "lr_schedule_type": "wsd", "wsd_decay_steps_fraction": 0.1, "wsd_decay_style": "linear",
    }  # fmt: skip
    return maxtext_schedule.MaxTextSchedule(**(given | kwargs))


def maxtext_source(**kwargs) -> maxtext.MaxText:
    given = {
        "path": str(DATA / "maxtext_tiny" / "16"), "decoder_block": "llama2",
        "model_name": "default", "rope_type": "default", "rope_interleave": True,
        "param_scan_axis": 1, "normalize_embedding_logits": True, "learning_rate": schedule(),
    }  # fmt: skip
    return maxtext.MaxText(**(given | kwargs))


def stories_source(**kwargs) -> llama2c.Llama2c:
    given = {
        "path": str(STORIES / "stories260K.bin"),
        "tokenizer": str(STORIES / "tok512.bin"),
    }
    return llama2c.Llama2c(**(given | kwargs))


def importing(output: pathlib.Path, source, model=None, **kwargs) -> recipe.Import:
    given = {"tokenizer": None, "leave_out": (), "mesh": MESH}
    return recipe.Import(output=str(output), source=source, model=model, **(given | kwargs))


def metrics() -> list[dict[str, float]]:
    """What MaxText measured at steps 0..31."""
    return [json.loads(line) for line in (DATA / "maxtext_tiny" / "metrics.jsonl").open()]


def the_batch() -> batch.Batch:
    """The one that every step of maxtext_tiny saw."""
    found = np.load(DATA / "maxtext_tiny" / "batch.npz")
    ones = np.ones_like(found["inputs"])
    return jax.tree.map(
        jnp.asarray,
        batch.Batch(
            tokens=found["inputs"],
            targets=found["targets"],
            segments=found["inputs_segmentation"],
            positions=found["inputs_position"],
            weights=ones.astype(np.float32),
            source=np.zeros_like(ones),
        ),
    )


def restored(run_dir: str, step: int, config: architecture.TransformerConfig, tx=None):
    """(params, optimizer state or None) of an imported run, on one device."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    targets = {"params": transformer.abstract(config)}
    if tx is not None:
        state = jax.eval_shape(tx.init, targets["params"])
        count = jax.ShapeDtypeStruct((), "int32")
        targets["opt_state"] = optimizer.to_parts(state) | {"schedule_count": count}
    targets = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), targets)
    found = checkpoint.restore(run_dir, step, targets)
    if tx is None:
        return found["params"], None
    return found["params"], optimizer.from_parts(state, found["opt_state"])
