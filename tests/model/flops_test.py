# SPDX-License-Identifier: Apache-2.0
"""FLOPs against published counts, and against the products in the traced program."""

import jax
import numpy as np
import pytest
import tiny_model as tiny
from jax.experimental.pallas import tpu

from midjax.model import architecture, flops, transformer

LLAMA_2_7B = {
    "vocab_size": 32000, "dim": 4096, "layers": 32, "heads": 32, "kv_heads": 32, "head_dim": 128,
    "ffn_dim": 11008,
}  # fmt: skip


def packed(*rows: tuple[int, ...], length: int):
    """Segments and positions of rows that hold documents of these lengths, then padding."""
    segments, positions = np.zeros((2, len(rows), length), np.int32)
    for row, documents in enumerate(rows):
        at = 0
        for number, size in enumerate(documents, 1):
            segments[row, at : at + size] = number
            positions[row, at : at + size] = np.arange(size)
            at += size
    return segments, positions


def test_llama_2_7b_is_worth_what_maxtext_says():
    """MaxText 0.2.5 prints 702.3 TFLOP for 4 rows of 4,096 tokens, each of one document."""
    rows = packed(*[(4096,)] * 4, length=4096)
    assert flops.of_rows(tiny.config(**LLAMA_2_7B), *rows) / 1e12 == pytest.approx(702.3, abs=0.05)


def test_attention_is_counted_by_document():
    """6 P for each token, and 12 N H for each of a document's L (L + 1) / 2 pairs, per layer."""
    config = tiny.config(layers=3, heads=4, head_dim=16)
    whole, parts, less = (
        flops.of_rows(config, *packed(row, length=8)) for row in [(8,), (5, 3), (5,)]
    )
    pair = 12 * 4 * 16 * 3
    assert whole - parts == pair * (36 - 15 - 6)
    assert parts - less == 6 * flops.matrix_entries(config) * 3 + pair * 6


def test_a_window_bounds_the_pairs_of_its_layers():
    segments, positions = packed((7, 2), (10,), length=12)
    seen = (segments[:, :, None] == segments[:, None]) & (segments > 0)[:, :, None]
    distance = np.arange(12)[:, None] - np.arange(12)
    for window in (None, 1, 4, 30):
        visible = seen & (distance >= 0) & (distance < (window or 99))
        assert flops.pairs(segments, positions, window) == visible.sum()
    full, mixed = (
        tiny.config(layers=3),
        tiny.config(layers=3, layer_pattern=("window", "full"), window_tokens=4),
    )  # layers 0 and 2 have the window
    difference = 12 * 4 * 16 * 2 * (28 + 3 + 55 - 22 - 3 - 34)
    assert flops.of_rows(full, segments, positions) - difference == flops.of_rows(
        mixed, segments, positions
    )


@pytest.mark.parametrize(
    ("name", "experts", "model", "published"),
    [
        ("Mixtral 8x7B, 12.9B active (2401.04088: 13B)", (8, 2, 14336),
         {"vocab_size": 32000, "dim": 4096, "layers": 32, "heads": 32, "kv_heads": 8,
          "head_dim": 128}, 12.9e9),
        ("Qwen3-30B-A3B, 3.3B activated (its model card)", (128, 8, 768),
         {"vocab_size": 151936, "dim": 2048, "layers": 48, "heads": 32, "kv_heads": 4,
          "head_dim": 128}, 3.3e9),
    ],
    ids=["mixtral", "qwen3"],
)  # fmt: skip
def test_of_experts_the_active_ones_count(name, experts, model, published):
    """Published counts of active parameters have the embedding, which is no product."""
    count, per_token, ffn_dim = experts
    config = tiny.config(
        **model,
        experts=architecture.Experts(count=count, per_token=per_token, ffn_dim=ffn_dim),
    )
    embedding = config.vocab_size * config.dim
    assert flops.matrix_entries(config) + embedding == pytest.approx(published, rel=0.02), name


def dots(jaxpr, times=1):
    """(FLOPs of products with and without batch axes) of a program; loops by their lengths."""
    batched = plain = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (inner, _), (batch, _) = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            size = 2 * times * np.prod(equation.outvars[0].aval.shape)
            size *= np.prod([shape[axis] for axis in inner])
            batched, plain = (batched + size, plain) if batch else (batched, plain + size)
        inside = times * equation.params.get("length", 1)
        for value in equation.params.values():
            for part in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(part := getattr(part, "jaxpr", part), "eqns"):
                    more = dots(part, inside)
                    batched, plain = batched + more[0], plain + more[1]
    return batched, plain


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"tied_head": True},
        {"layers": 4, "layer_pattern": ("window", "full"), "window_tokens": 8},
    ],
    ids=["plain", "tied", "windows"],
)
def test_products_in_the_traced_step(changed):
    """Without remat and padding, a step's products with parameters are 6 P each token, and the
    forward pass's products of queries, keys and values are 4 N H for each pair of a row, masked
    or not, since a row this short is one block."""
    config = tiny.config(**changed)
    tokens, _, _ = tiny.rows(2, 32)
    whole = [np.asarray(x) for x in packed((32,), (32,), length=32)]
    params = transformer.abstract(config)

    def objective(params):
        hidden = transformer.hidden(config, params, tokens, *map(jax.numpy.asarray, whole))
        return tiny.mean_loss(config, params, hidden, tokens)

    forward, _ = dots(jax.make_jaxpr(objective)(params).jaxpr)
    assert forward == 4 * config.heads * config.head_dim * config.layers * 2 * 32 * 32
    _, plain = dots(jax.make_jaxpr(jax.grad(objective))(params).jaxpr)
    assert plain == 6 * flops.matrix_entries(config) * 2 * 32
    seen = sum(
        flops.pairs(*whole, config.window_of(config.layer_type(i))) for i in range(config.layers)
    )
    share = seen / (config.layers * 2 * 32 * 32)
    assert flops.of_rows(config, *whole) == plain + 3 * forward * share


@pytest.mark.parametrize(
    ("kinds", "chip", "cores"),
    [
        (("TPU v4",), "TPU_V4", 2),
        (("TPU v5 lite", "TPU v5e"), "TPU_V5E", 1),
        (("TPU v5", "TPU v5p"), "TPU_V5P", 2),
        (("TPU v6 lite", "TPU v6e"), "TPU_V6E", 1),
    ],
)
def test_peaks_are_those_that_jax_knows(kinds, chip, cores):
    """JAX's own table for its kernels, which is by core and rounds v6e's 918 to 920."""
    core = tpu.get_tpu_info_for_chip(tpu.ChipVersion[chip], cores)
    for kind in kinds:
        known = pytest.approx(cores * core.bf16_ops_per_second, rel=0.003)
        assert flops.peak_flops_per_second(kind) == known


def test_an_unknown_device_has_no_peak():
    assert flops.peak_flops_per_second("cpu") is None
