# SPDX-License-Identifier: Apache-2.0
"""The train step of transformers' Llama in PyTorch: `torch_step.py SIZE eager`, or `compiled`."""

import sys
from collections.abc import Callable

import contest
import torch
import transformers


def state_dict(size: contest.Size) -> dict[str, torch.Tensor]:
    """The shared weights under transformers' names; its matrices are [out, in]."""
    given = {name: torch.from_numpy(x) for name, x in contest.weights(size).items()}
    names = {
        "wq": "self_attn.q_proj", "wk": "self_attn.k_proj", "wv": "self_attn.v_proj",
        "wo": "self_attn.o_proj", "w_gate": "mlp.gate_proj", "w_up": "mlp.up_proj",
        "w_down": "mlp.down_proj", "attn_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
    }  # fmt: skip
    found = {
        "model.embed_tokens.weight": given["embed"],
        "model.norm.weight": given["final_norm"],
        "lm_head.weight": given["head"].T,
    }
    for ours, theirs in names.items():
        for layer in range(size.layers):
            weight = given[ours][layer]
            found[f"model.layers.{layer}.{theirs}.weight"] = weight.T if weight.ndim > 1 else weight
    return found


def make(size: contest.Size) -> tuple[Callable[[], float], int]:
    config = transformers.LlamaConfig(
        vocab_size=size.vocab_size, hidden_size=size.dim, intermediate_size=size.ffn_dim,
        num_hidden_layers=size.layers, num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads, max_position_embeddings=size.row_tokens,
        rms_norm_eps=contest.NORM_EPS, rope_theta=contest.ROPE_THETA, tie_word_embeddings=False,
        use_cache=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    model.load_state_dict(state_dict(size))
    model.train()
    parameters = sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=contest.LR, betas=(contest.B1, contest.B2), eps=contest.EPS,
        weight_decay=contest.WEIGHT_DECAY,
    )  # fmt: skip
    forward = torch.compile(model) if sys.argv[2] == "compiled" else model
    tokens, targets = (torch.from_numpy(x).long() for x in contest.tokens(size))

    def update() -> float:
        logits = forward(input_ids=tokens).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), contest.CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return update, parameters


if __name__ == "__main__":
    contest.serve(make)
