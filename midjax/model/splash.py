# SPDX-License-Identifier: Apache-2.0
"""Splash attention on TPU: the mask, the sizes of its blocks, and one shard's call of the kernel.

The kernel is JAX's own (jax.experimental.pallas.ops.tpu.splash_attention). It never holds scores
in memory, skips blocks that the mask empties, and shares keys within a group of query heads.

Shape suffixes: B batch, T query length, S key length, N query heads, K key and value heads, H head
size.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel_lib
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as mask_lib
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as info_lib
from jaxtyping import Array, Float, Int

from midjax.model import context, partial_sums, window

# Blocks are multiples of the width of a TPU's vector registers.
LANES = 128
# (bytes of a head's row up to, tokens per block): the largest blocks whose forward and backward
# kernels, with segments, window and soft cap, the compiler takes. Rows fill whole registers: a head
# of 64 counts as one of 128. The flags in hardware/flags.py let a kernel of v5e, v5p and v6e have
# 32 MiB of VMEM or more; v4 has 16 MiB for everything.
_LONGEST_BLOCK = ((256, 1024), (512, 512), (1024, 256))
# By `jax.Device.device_kind`, where it is another.
_LONGEST_BLOCK_OF = {"TPU v4": ((256, 512), (512, 256), (1024, 128))}
# The fused backward does five products instead of seven, and writes one gradient of the queries
# per block of keys, to be summed afterwards: a tenth of the time it saves, at any length, but much
# memory. So where blocks of one size would be many, those of twice the size are taken: they fit
# VMEM too, and compute a little more behind the mask. And where the gradients would take more than
# so many times the queries' memory, heads are computed in groups, one after the other.
_FEW_KEY_BLOCKS, _MOST_GRADIENTS = 4, 16


class Mask(mask_lib.Mask):
    """`window.Seen` for queries in placed order over keys in natural order.

    Computed from places, in the kernel and here: an [T, S] array would not fit where T = 131,072.

    Args:
      tokens: S, and the places of all queries; queries are padded per shard to `queries`.
      shards: of the context axis.
      queries: of each shard, a multiple of `LANES`; those that pad it stand where its last one
        does, so that they see something.
      keys: S with its padding, which nobody sees.
      window_tokens: as for `window.Seen`.
    """

    def __init__(
        self, *, tokens: int, shards: int, queries: int, keys: int, window_tokens: int | None
    ) -> None:
        self._key = (tokens, shards, queries, keys, window_tokens)
        places = context.order(tokens, shards).reshape(shards, -1)
        padding = ((0, 0), (0, queries - places.shape[1]))
        # The library's names, which make it compute the mask in the kernel.
        self.q_sequence = np.pad(places, padding, mode="edge").reshape(-1)
        self.mask_function = window.Seen(window_tokens)
        self._places = np.arange(keys, dtype=np.int32)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.q_sequence), len(self._places))

    def __getitem__(self, index: Any) -> np.ndarray:
        """A block of the mask.

        The library asks a block only whether any or all of it is seen, unless both differ: where
        the corners tell, one number stands for the whole block. At 131,072 tokens that is seconds
        instead of minutes.
        """
        rows, columns = self.q_sequence[index[0]], self._places[index[1]]
        window = self.mask_function.window_tokens
        newest, oldest = rows.max(), rows.min()
        if columns[0] > newest or (window is not None and columns[-1] <= oldest - window):
            return np.zeros((1, 1), np.bool_)
        if columns[-1] <= oldest and (window is None or columns[0] > newest - window):
            return np.ones((1, 1), np.bool_)
        return self.mask_function(rows[:, None], columns[None, :])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mask) and self._key == other._key

    def __hash__(self) -> int:
        return hash((Mask, self._key))


def block(length: int, longest: int) -> int:
    """The longest legal block: a multiple of 128 that divides the length, up to a limit.

    Raises:
      ValueError: the length is not a multiple of 128.
    """
    if length % LANES or length < LANES:
        raise ValueError(
            f"Splash attention takes lengths that are multiples of {LANES}, got {length} tokens. "
            f"Pad to {_padded(length)}."
        )
    return max(size for size in range(LANES, longest + 1, LANES) if length % size == 0)


def block_sizes(
    queries: int,
    keys: int,
    *,
    kv_heads: int,
    head_dim: int,
    itemsize: int,
    window_tokens: int | None,
    device_kind: str,
) -> kernel_lib.BlockSizes:
    """The blocks of a call.

    Args:
      queries, keys: lengths, multiples of 128.
      kv_heads: of a shard.
      head_dim, itemsize: H, and bytes per number.
      window_tokens: blocks longer than the window would be mostly masked.
      device_kind: as `jax.Device.device_kind` says it.

    Raises:
      ValueError: a length that is not a multiple of 128, or a head that is too large.
    """
    row_bytes = _padded(head_dim) * itemsize
    table = _LONGEST_BLOCK_OF.get(device_kind, _LONGEST_BLOCK)
    longest = next((size for limit, size in table if row_bytes <= limit), None)
    if longest is None:
        raise ValueError(
            f"Splash attention has no blocks for head_dim {head_dim} with {itemsize} bytes per "
            f"number: {row_bytes} bytes, and the most are {table[-1][0]}. "
            "Use attention_kernel 'blocked'."
        )
    if window_tokens is not None:
        longest = min(longest, max(2 * LANES, _padded(window_tokens)))
    q, kv = block(queries, longest), block(keys, longest)
    fused_kv = _fused_block(keys, kv)
    fused = window_tokens is None and _groups(keys // fused_kv, kv_heads) is not None
    return kernel_lib.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=kv,
        block_q_dkv=q,
        block_kv_dkv=fused_kv if fused else kv,
        block_kv_dkv_compute=kv,
        block_q_dq=None if fused else q,
        block_kv_dq=None if fused else kv,
        use_fused_bwd_kernel=fused,
    )


def _fused_block(keys: int, computed: int) -> int:
    """Keys per partial gradient of the queries: one or two of the blocks computed at once."""
    few = keys // computed <= _FEW_KEY_BLOCKS
    return computed if few or keys % (2 * computed) else 2 * computed


def _groups(key_blocks: int, kv_heads: int) -> int | None:
    """In how many groups of heads the fused backward is done; None where none are small enough."""
    few = (n for n in range(1, kv_heads + 1) if kv_heads % n == 0)
    return next((n for n in few if key_blocks <= n * _MOST_GRADIENTS), None)


@functools.lru_cache(maxsize=16)
def kernel(
    *,
    tokens: int,
    shards: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    itemsize: int,
    window_tokens: int | None,
    softcap: float | None,
    device_kind: str,
    name: str,
    interpret: bool,
) -> kernel_lib.SplashAttentionKernel:
    """The kernel of a shape: its mask by blocks, as NumPy arrays, and its settings.

    Built from the parts of the library's `make_splash_mha`, which would put the arrays on a
    device: there is none when compiling for a TPU elsewhere, and a trace must not keep them.

    Args:
      tokens: T of the whole row.
      shards: of the context axis; the arrays of all of them lie one after the other.
      heads, kv_heads: of a shard.
      head_dim, itemsize, window_tokens: see `block_sizes`.
      softcap: c in c * tanh(score / c), or None.
      device_kind: see `block_sizes`.
      name: under which remat policies find the results.
      interpret: run as plain JAX, on any platform.
    """
    queries, keys = _padded(tokens // shards), _padded(tokens)
    sizes = block_sizes(
        queries,
        keys,
        kv_heads=kv_heads,
        head_dim=head_dim,
        itemsize=itemsize,
        window_tokens=window_tokens,
        device_kind=device_kind,
    )
    one = Mask(
        tokens=tokens, shards=shards, queries=queries, keys=keys, window_tokens=window_tokens
    )
    mask = mask_lib.MultiHeadMask([one] * heads)
    forward, seen = info_lib.process_mask(
        mask, (sizes.block_q, sizes.block_kv), q_seq_shards=shards
    )
    backward_q = None
    if not sizes.use_fused_bwd_kernel:
        backward_q, _ = info_lib.process_mask(
            mask, (sizes.block_q_dq, sizes.block_kv_dq), q_seq_shards=shards
        )
    backward_kv, _ = info_lib.process_mask_dkv(
        mask,
        (sizes.block_q_dkv, sizes.block_kv_dkv),
        q_seq_shards=shards,
        shrink_grid=not sizes.use_fused_bwd_kernel,
    )
    return kernel_lib.SplashAttentionKernel(
        forward,
        backward_q,
        backward_kv,
        block_sizes=sizes,
        is_mqa=False,
        save_residuals=False,
        mask_value=kernel_lib.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=softcap,
        residual_checkpoint_name=name,
        mask_function=seen,
        interpret=interpret,
    )


def of_shard(
    made: kernel_lib.SplashAttentionKernel, shard: Int[Array, ""] | int, shards: int
) -> kernel_lib.SplashAttentionKernel:
    """One shard's part of a kernel: of its mask's blocks, those of this shard's queries.

    Args:
      made: from `kernel`.
      shard: which, counted from 0 along the context axis.
      shards: as `kernel` was told.
    """
    if shards == 1:
        return made

    def part(array: Any, axis: int) -> Any:
        if array is None:
            return None
        size = array.shape[axis] // shards
        return jax.lax.dynamic_slice_in_dim(jnp.asarray(array), shard * size, size, axis)

    def parts(info: info_lib.MaskInfo | None) -> info_lib.MaskInfo | None:
        if info is None:
            return None
        assert info.partial_mask_blocks is None  # the mask is computed, see `Mask`
        return info._replace(
            data_next=part(info.data_next, 1),
            mask_next=part(info.mask_next, 1),
            block_mask=part(info.block_mask, 1),
            q_sequence=part(info.q_sequence, 0),
        )

    masks = (made.fwd_mask_info, made.dq_mask_info, made.dkv_mask_info)
    cut: Any = [parts(info) for info in masks]
    return kernel_lib.SplashAttentionKernel(*cut, **made.kwargs)


def attend(
    made: kernel_lib.SplashAttentionKernel,
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    segments_BT: Int[Array, "B T"],
    segments_BS: Int[Array, "B S"],
    scale: float,
) -> Float[Array, "B T N H"]:
    """Attention of one shard's queries to keys in natural order.

    Args:
      made: from `kernel` and `of_shard`.
      scale: on the scores; here on the queries, as the kernel doesn't scale.
    """
    length = q_BTNH.shape[1]
    if scale != 1.0:
        # In float32: a scale that is rounded to bfloat16 is another temperature.
        q_BTNH = (q_BTNH.astype(jnp.float32) * scale).astype(q_BTNH.dtype)
    q_BNTH = _pad(q_BTNH, "edge").swapaxes(1, 2)
    k_BKSH, v_BKSH = (_pad(x, "constant").swapaxes(1, 2) for x in (k_BSKH, v_BSKH))
    segments = kernel_lib.SegmentIds(_pad(segments_BT, "edge"), _pad(segments_BS, "constant"))
    called = functools.partial(partial_sums.gradient(_by_row), (made, segments))
    # The mask is the same for all heads, so that the kernel takes any number of them. Written out:
    # a loop would copy what it takes and what it gives.
    groups = _groups_of(made, k_BKSH)
    pieces = zip(*(jnp.split(x, groups, axis=1) for x in (q_BNTH, k_BKSH, v_BKSH)), strict=True)
    out_BNTH = jnp.concatenate([called(*piece) for piece in pieces], axis=1)
    return out_BNTH.swapaxes(1, 2)[:, :length]


def _groups_of(made: kernel_lib.SplashAttentionKernel, k_BKSH: jax.Array) -> int:
    sizes = made.kwargs["block_sizes"]
    if not sizes.use_fused_bwd_kernel:
        return 1
    groups = _groups(k_BKSH.shape[2] // sizes.block_kv_dkv, k_BKSH.shape[1])
    assert groups is not None  # or `block_sizes` would not have fused it
    return groups


def _by_row(constant: tuple, q_BNTH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array) -> Any:
    made, segments = constant
    return jax.vmap(made)(q_BNTH, k_BKSH, v_BKSH, segments)


def _padded(length: int) -> int:
    return -(-length // LANES) * LANES


def _pad(x: jax.Array, mode: str) -> jax.Array:
    """Axis 1 to a legal length. Padding that is a query sees what the last query sees."""
    extra = _padded(x.shape[1]) - x.shape[1]
    if not extra:
        return x
    return jnp.pad(x, ((0, 0), (0, extra)) + ((0, 0),) * (x.ndim - 2), mode=mode)
