# SPDX-License-Identifier: Apache-2.0
"""What every contestant of train_speed.py shares: the model, its weights, the batch, the protocol.

A contestant is a script that is given a size, prints its first loss and number of parameters, then
reads from its input how many updates to do, and prints the CPU seconds and the seconds they took.
It runs in an environment of its own: nothing but numpy is imported here.
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable

import numpy as np

# AdamW on every parameter, after a clip of the global norm.
LR, B1, B2, EPS, WEIGHT_DECAY, CLIP_NORM = 3e-4, 0.9, 0.95, 1e-8, 0.1, 1.0
NORM_EPS, ROPE_THETA, WEIGHT_STD = 1e-5, 10_000.0, 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """A Llama with an untied head, and a batch of whole documents."""

    dim: int
    layers: int
    heads: int
    kv_heads: int
    ffn_dim: int
    vocab_size: int
    row_tokens: int
    batch_rows: int

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def batch_tokens(self) -> int:
        return self.row_tokens * self.batch_rows

    @property
    def parameters(self) -> int:
        return self.matrices + self.vocab_size * self.dim + (2 * self.layers + 1) * self.dim

    @property
    def matrices(self) -> int:
        """Parameters that a token is multiplied with: those of the layers, and the head."""
        attention = 2 * self.dim * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.dim * self.ffn_dim) + self.dim * self.vocab_size

    @property
    def update_gflop(self) -> float:
        """Products of one update: 6 per parameter and token, and attention with half of the pairs
        of a row; a backward pass is twice a forward pass (PaLM, 2204.02311, appendix B).
        """
        pairs = self.batch_rows * self.row_tokens**2 / 2
        attention = 12 * self.layers * self.dim * pairs
        return (6 * self.matrices * self.batch_tokens + attention) / 1e9


SIZES = {
    "small": Size(
        dim=512, layers=8, heads=8, kv_heads=4, ffn_dim=1408, vocab_size=32_000, row_tokens=512,
        batch_rows=8,
    ),
    "tiny": Size(
        dim=256, layers=4, heads=4, kv_heads=2, ffn_dim=704, vocab_size=4096, row_tokens=256,
        batch_rows=16,
    ),
    "demo": Size(  # of midjax's demo, but for its tied head
        dim=128, layers=4, heads=4, kv_heads=2, ffn_dim=384, vocab_size=2048, row_tokens=256,
        batch_rows=4,
    ),
}  # fmt: skip


def weights(size: Size) -> dict[str, np.ndarray]:
    """The first weights by name, those of layers stacked; products are x [.., in] by [in, out]."""
    rng = np.random.default_rng(0)
    layers, dim, ffn, vocab = size.layers, size.dim, size.ffn_dim, size.vocab_size
    queries, keys = size.heads * size.head_dim, size.kv_heads * size.head_dim

    def matrix(*shape: int) -> np.ndarray:
        return WEIGHT_STD * rng.standard_normal(shape, np.float32)

    return {
        "embed": matrix(vocab, dim), "head": matrix(dim, vocab),
        "wq": matrix(layers, dim, queries), "wk": matrix(layers, dim, keys),
        "wv": matrix(layers, dim, keys), "wo": matrix(layers, queries, dim),
        "w_gate": matrix(layers, dim, ffn), "w_up": matrix(layers, dim, ffn),
        "w_down": matrix(layers, ffn, dim), "attn_norm": np.ones((layers, dim), np.float32),
        "mlp_norm": np.ones((layers, dim), np.float32), "final_norm": np.ones(dim, np.float32),
    }  # fmt: skip


def tokens(size: Size) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, targets), each [rows, tokens]."""
    shape = size.batch_rows, size.row_tokens + 1
    drawn = np.random.default_rng(1).integers(0, size.vocab_size, shape, np.int32)
    return np.ascontiguousarray(drawn[:, :-1]), np.ascontiguousarray(drawn[:, 1:])


def cpu_seconds() -> float:
    """User and system time of this process and its children."""
    now = os.times()
    return now.user + now.system + now.children_user + now.children_system


def serve(make: Callable[[Size], tuple[Callable[[], float], int]]) -> None:
    """The protocol.

    Args:
      make: size -> (an update that waits for its end and returns its loss, number of parameters).
    """
    update, parameters = make(SIZES.get(sys.argv[1]))
    say({"loss": update(), "parameters": parameters})
    update()  # a second one may compile again, for what the first one returned
    for line in sys.stdin:
        cpu, wall = cpu_seconds(), time.perf_counter()
        for _ in range(int(line)):
            loss = update()
        used = {"cpu": cpu_seconds() - cpu, "wall": time.perf_counter() - wall}
        say(used | {"loss": loss})


def say(result: dict[str, float]) -> None:
    print("RESULT", json.dumps(result), flush=True)
