# SPDX-License-Identifier: Apache-2.0
"""Masks against dense ones and against the library's own; block sizes; the kernel's parts."""

import jax
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as mask_lib
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as info_lib

from midjax.model import context, splash


def dense(tokens, shards, window):
    """The mask as an array: queries in placed order, keys in natural order."""
    queries, keys = context.order(tokens, shards)[:, None], np.arange(tokens)[None]
    return (keys <= queries) & (keys > queries - (window or tokens))


def mask(tokens, shards, window):
    return splash.Mask(
        tokens=tokens, shards=shards, queries=tokens // shards, keys=tokens, window_tokens=window
    )


# Blocks that lie in one chunk, and blocks that lie over two.
@pytest.mark.parametrize("shards, window", [(1, None), (1, 300), (2, None), (4, 130), (4, 1)])
@pytest.mark.parametrize("size", [128, 256])
def test_a_block_of_the_mask_tells_what_the_dense_one_does(shards, window, size):
    tokens = 1024
    made, whole = mask(tokens, shards, window), dense(tokens, shards, window)
    assert made.shape == whole.shape
    for i in range(0, tokens, size):
        for j in range(0, tokens, size):
            index = (slice(i, i + size), slice(j, j + size))
            found, want = made[index], whole[index]
            assert (found.any(), found.all()) == (want.any(), want.all())
            if want.any() and not want.all():
                np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("shards, window", [(1, None), (1, 200), (2, None), (4, 200)])
@pytest.mark.parametrize("process", [info_lib.process_mask, info_lib.process_mask_dkv])
def test_the_kernel_walks_over_the_blocks_of_the_dense_mask(process, shards, window):
    ours, _ = process(
        mask_lib.MultiHeadMask([mask(1024, shards, window)] * 2), (128, 128), q_seq_shards=shards
    )
    array = mask_lib.NumpyMask(dense(1024, shards, window))
    want, _ = process(mask_lib.MultiHeadMask([array] * 2), (128, 128), q_seq_shards=shards)
    np.testing.assert_array_equal(ours.block_mask, want.block_mask)
    np.testing.assert_array_equal(ours.data_next, want.data_next)
    np.testing.assert_array_equal(ours.q_sequence, context.order(1024, shards))


def test_padding_stands_where_the_last_query_does():
    made = splash.Mask(tokens=240, shards=2, queries=128, keys=256, window_tokens=None)
    places = made.q_sequence.reshape(2, 128)
    np.testing.assert_array_equal(places[0, :120], context.order(240, 2)[:120])
    assert set(places[0, 120:]) == {239} and set(places[1, 120:]) == {179}
    assert not made[slice(0, 256), slice(240, 256)].any()


def test_masks_are_equal_by_content():
    assert mask(256, 1, None) == mask(256, 1, None) != mask(256, 1, 5)
    assert len({mask(256, 1, 5), mask(256, 1, 5), mask(256, 2, 5)}) == 2


# 4,224 = 33 * 128 and 1,408 = 11 * 128.
@pytest.mark.parametrize("length, size", [(128, 128), (2048, 1024), (4224, 384), (1408, 128)])
def test_blocks_divide_the_length(length, size):
    assert splash.block(length, 1024) == size


@pytest.mark.parametrize("length", [0, 100, 1000])
def test_other_lengths_are_refused(length):
    with pytest.raises(ValueError, match=f"multiples of 128, got {length} tokens"):
        splash.block(length, 1024)


def blocks(keys, head_dim=128, itemsize=2, window=None, kv_heads=1, kind="TPU v6 lite"):
    return splash.block_sizes(
        8192, keys, kv_heads=kv_heads, head_dim=head_dim, itemsize=itemsize, window_tokens=window,
        device_kind=kind,
    )  # fmt: skip


def test_larger_heads_have_smaller_blocks():
    assert blocks(8192).block_kv == 1024
    assert blocks(8192, head_dim=256).block_kv == blocks(8192, itemsize=4).block_kv == 512
    # A head of 64 takes as much of the registers as one of 128.
    assert blocks(8192, head_dim=64, itemsize=4).block_kv == 512
    with pytest.raises(ValueError, match=r"head_dim 512 with 4 bytes .* 'blocked'"):
        blocks(8192, head_dim=512, itemsize=4)


def test_v4_has_less_vmem():
    assert blocks(8192, kind="TPU v4").block_kv == blocks(8192, kind="TPU v4").block_q == 512
    assert blocks(8192, head_dim=256, kind="TPU v4").block_kv == 256
    assert blocks(8192, head_dim=256, itemsize=4, kind="TPU v4").block_kv == 128


def test_blocks_are_not_longer_than_the_window():
    assert blocks(8192, window=500).block_kv == 512
    assert blocks(8192, window=10).block_kv == 256


def test_backward_is_fused_while_key_blocks_are_few():
    assert blocks(4096).use_fused_bwd_kernel and blocks(4096).block_q_dq is None
    assert blocks(4096).block_kv_dkv == 1024 and blocks(8192).block_kv_dkv == 2048
    assert blocks(8192).block_kv_dkv_compute == 1024
    assert blocks(32_768).use_fused_bwd_kernel
    assert not blocks(65_536).use_fused_bwd_kernel and blocks(65_536).block_q_dq == 1024
    # In groups of heads: each writes as much in gradients as a shorter row's heads together.
    assert blocks(65_536, kv_heads=2).use_fused_bwd_kernel
    assert blocks(131_072, kv_heads=8).use_fused_bwd_kernel
    assert not blocks(131_072, kv_heads=3).use_fused_bwd_kernel
    assert not blocks(4096, window=2048).use_fused_bwd_kernel


def test_a_kernel_of_a_long_row_is_small_and_on_the_host():
    made = splash.kernel(
        tokens=131_072, shards=16, heads=32, kv_heads=8, head_dim=128, itemsize=2,
        window_tokens=None, softcap=None, device_kind="TPU v5", name="x", interpret=False,
    )  # fmt: skip
    leaves = jax.tree.leaves(made)
    assert leaves and all(isinstance(leaf, np.ndarray) for leaf in leaves)
    assert sum(leaf.nbytes for leaf in leaves) < 4e6
    # 128 blocks of queries over 128 of keys; on the diagonal half of a block is seen.
    seen = made.fwd_mask_info.block_mask
    assert np.count_nonzero(seen == 2) == 128 * 127 // 2 and np.count_nonzero(seen == 1) == 128
    # Load balance: every shard has 8 blocks of queries with as much to do.
    work = (seen[0] > 0).sum(axis=1).reshape(16, 8).sum(axis=1)
    assert len(set(work.tolist())) == 1
