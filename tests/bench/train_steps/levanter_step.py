# SPDX-License-Identifier: Apache-2.0
"""Levanter's train step, as its trainer jits it, with the settings that are fastest on a CPU."""

import dataclasses
import os
import tempfile
from collections.abc import Callable
from typing import Any

os.environ.setdefault("WANDB_MODE", "disabled")

import contest
import haliax as hax
import jax
import jmp
from levanter.layers.attention import AttentionBackend, AttentionMask
from levanter.models.llama import LlamaConfig
from levanter.models.lm_model import LmExample, compute_next_token_loss
from levanter.optim import AdamConfig
from levanter.tracker import NoopConfig
from levanter.trainer import Trainer, TrainerConfig


def model(size: contest.Size) -> Any:
    return dataclasses.replace(
        LlamaConfig(),
        seq_len=size.row_tokens, hidden_dim=size.dim, intermediate_dim=size.ffn_dim,
        num_layers=size.layers, num_heads=size.heads, num_kv_heads=size.kv_heads,
        layer_norm_epsilon=contest.NORM_EPS, initializer_range=contest.WEIGHT_STD,
        gradient_checkpointing=False, attn_backend=AttentionBackend.VANILLA,
    )  # fmt: skip


def loss(model: Any, example: Any, *, key: Any = None) -> Any:
    # The mean is taken here: Levanter's own has a mask of floats, which JAX has come to refuse.
    return compute_next_token_loss(model, example, key=key, reduction=None).mean()


def make(size: contest.Size) -> tuple[Callable[[], float], int]:
    config = TrainerConfig(
        tracker=NoopConfig(), mp=jmp.get_policy("f32"), train_batch_size=size.batch_rows,
        num_train_steps=1000, id="bench", require_accelerator=False,
        log_dir=tempfile.mkdtemp(),
    )  # fmt: skip
    optimizer = AdamConfig(
        learning_rate=contest.LR, weight_decay=contest.WEIGHT_DECAY, beta1=contest.B1,
        beta2=contest.B2, epsilon=contest.EPS, max_grad_norm=contest.CLIP_NORM, warmup=0,
        lr_schedule="constant", default_weight_decay_mask=False,
    )  # fmt: skip
    trainer = Trainer(config, optimizer.build(1000), loss)
    trainer.__enter__()  # the mesh, for as long as the process lives
    llama = model(size)
    vocabulary = hax.Axis("vocab", size.vocab_size)
    state: Any = trainer.initial_state(
        jax.random.PRNGKey(0),
        model_init=lambda: llama.build(vocabulary, key=jax.random.PRNGKey(1)),
    )
    tokens, _ = contest.tokens(size)
    axes = (hax.Axis("batch", size.batch_rows), llama.Pos)
    named = hax.named(jax.device_put(tokens), axes)
    # It predicts the next token within a row, and leaves out the last place by itself.
    batch = LmExample(tokens=named, loss_mask=hax.ones(axes), attn_mask=AttentionMask.causal())

    def update() -> float:
        nonlocal state
        found = trainer._jit_train_step_fn_no_hook(state, (batch,), {})
        state = found.new_state
        jax.block_until_ready(state)
        return float(found.loss)

    return update, sum(x.size for x in jax.tree.leaves(state.model) if hasattr(x, "size"))


if __name__ == "__main__":
    contest.serve(make)
