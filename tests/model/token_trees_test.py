# SPDX-License-Identifier: Apache-2.0
"""Trees of tokens against transformers, which reads each of their texts alone."""

import jax
import numpy as np
import parity
import pytest

from midjax.model import hf, token_trees, transformer

# place in the row:  0  1  2  3  4   5  6   7  8   9
#                    a  b  c  d  e   f  g   h  i   padding, all but h and i in the first tree:
# texts: a b c d e,  a b f,  a b f g,  and h i
ENDS = [7, 7, 5, 5, 5, 7, 7, 9, 9, 10]
TREE = [1, 1, 1, 1, 1, 1, 1, 2, 2, 0]
DEPTH = [0, 1, 2, 3, 4, 2, 3, 0, 1, 0]
PATHS = ([0, 1, 2, 3, 4], [0, 1, 5], [0, 1, 5, 6], [7, 8])
PREFIXES = (7, 12)


def rows(tokens, prefix, before):
    """Two rows of the same trees, after these prefixes of so many tokens."""
    return token_trees.Rows(
        tokens=tokens,
        segments=np.tile(np.array(TREE, np.int32), (2, 1)),
        positions=np.array([[before[p] + d for d in DEPTH] for p in prefix], np.int32),
        ends=np.tile(np.array(ENDS, np.int32), (2, 1)),
        prefix=np.array(prefix, np.int32),
    )


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {}),
        # A window that ends within the prefix, and one kind of layer that has none.
        ("gemma2", {"sliding_window": 5, "head_dim": 16, "query_pre_attn_scalar": 16}),
        ("mixtral", {"num_local_experts": 4}),
    ],
)
def test_every_text_is_as_if_alone(kind, settings, tmp_path):
    model = parity.torch_model(kind, **settings)
    model.save_pretrained(str(tmp_path))
    config, params = hf.load(str(tmp_path))
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.vocab_size, (2, len(ENDS))).astype(np.int32)
    heads = np.zeros((2, 16), np.int32)
    for head, size in zip(heads, PREFIXES, strict=True):
        head[:size] = rng.integers(0, config.vocab_size, size)

    @jax.jit
    def logits(params, rows, heads):
        given = None if heads is None else token_trees.prefixes(config, params, *heads)
        hidden = token_trees.hidden(config, params, rows, given)
        return transformer.logits(config, params, hidden)

    found = logits(params, rows(tokens, (1, 0), PREFIXES), (heads, np.array(PREFIXES)))
    bare = logits(params, rows(tokens, (0, 0), (0, 0)), None)
    for row, prefix in enumerate((1, 0)):
        for path in PATHS:
            head = heads[prefix][: PREFIXES[prefix]]
            want = parity.torch_logits(model, np.concatenate([head, tokens[row, path]]))
            parity.assert_close(np.asarray(found)[row, path], want[len(head) :])
            want = parity.torch_logits(model, tokens[row, path])
            parity.assert_close(np.asarray(bare)[row, path], want)


def test_bytes_of_a_prefix():
    import tiny_model

    config = tiny_model.config(layers=3, kv_heads=2, head_dim=16, compute_dtype="bfloat16")
    params = tiny_model.params(config)
    made = jax.eval_shape(
        lambda *heads: token_trees.prefixes(config, params, *heads),
        np.zeros((4, 32), int),
        np.ones(4, int),
    )
    held = sum(x.size * x.dtype.itemsize for x in (made.keys, made.values))
    assert held == 4 * token_trees.prefix_bytes(config, 32) == 4 * 3 * 2 * 2 * 16 * 32 * 2
