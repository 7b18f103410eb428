# SPDX-License-Identifier: Apache-2.0
"""Attention against a loop over documents in NumPy, and the faster forms against the reference.

What needs four devices runs in one process that poses as having them: this file as a script.
"""

import math
import pathlib
import pickle
import sys

import devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding

from midjax.model import attention, context, sharding, splash

PLAIN = {"scale": 0.35, "window_tokens": None, "softcap": None}
KERNELS = ["blocked", "splash_interpret"]


def inputs(batch, length, heads, kv_heads, head_dim, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    q = jax.random.normal(keys[0], (batch, length, heads, head_dim))
    k, v = (jax.random.normal(key, (batch, length, kv_heads, head_dim)) for key in keys[1:])
    return q, k, v


def documents(batch, length, seed=0):
    """Segments of some documents per row, and padding at its end."""
    cuts = np.sort(np.random.default_rng(seed).integers(1, length, (batch, 4)), axis=1)
    found = 1 + (np.arange(length)[None, :, None] >= cuts[:, None]).sum(-1)
    return jnp.asarray(np.where(found == 5, 0, found), jnp.int32)


def by_loops(q, k, v, segments, scale, window_tokens, softcap):
    """float64, one query at a time, over the keys that it may see."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out, group = np.zeros_like(q), q.shape[2] // k.shape[2]
    for b, t, n in np.ndindex(*q.shape[:3]):
        first = 0 if window_tokens is None else max(0, t - window_tokens + 1)
        seen = [s for s in range(first, t + 1) if segments[b, s] == segments[b, t]]
        scores = scale * k[b, seen, n // group] @ q[b, t, n]
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        share = np.exp(scores - scores.max())
        out[b, t, n] = share / share.sum() @ v[b, seen, n // group]
    return out


def attend(kernel, q, k, v, segments, **options):
    if kernel == "reference":
        return attention.reference(q, k, v, segments, **options)
    return attention.attend(kernel, q, k, v, segments, **options)


def outcome(kernel, q, k, v, segments, places=None, **options):
    """The result, and the gradients of a sum of it with a weight for each number.

    Args:
      places: where the tokens stand in the row, if not one after the other.
    """
    weights = jnp.sin(jnp.arange(q.size).reshape(q.shape))
    weights = weights if places is None else weights[:, places]

    def total(q, k, v):
        out = attend(kernel, q, k, v, segments, **options)
        return jnp.sum(out * weights), out

    grads, out = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return out, grads


def same(found, want):
    np.testing.assert_allclose(found[0], want[0], atol=1e-5)
    for one, other in zip(found[1], want[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * float(jnp.abs(other).max()))


@pytest.mark.parametrize("window_tokens, softcap", [(None, None), (3, None), (1, None), (4, 0.7)])
@pytest.mark.parametrize("kernel", ["reference", *KERNELS])
def test_equals_loops(kernel, window_tokens, softcap):
    q, k, v = inputs(2, 13, 6, 2, 8)
    segments = np.array([[1] * 5 + [2] * 4 + [3] * 4, [1] * 10 + [0] * 3], np.int32)
    options = {"scale": 0.37, "window_tokens": window_tokens, "softcap": softcap}
    found = attend(kernel, q, k, v, jnp.asarray(segments), **options)
    np.testing.assert_allclose(found, by_loops(q, k, v, segments, **options), atol=2e-6)


# Under one block; two blocks and a shorter one; a window within a block, over blocks, over all.
@pytest.mark.parametrize("length, window", [(100, None), (300, 7), (300, 200), (700, 900)])
def test_blocked_equals_reference_with_gradients(length, window):
    q, k, v = inputs(2, length, 4, 2, 8, seed=length)
    case = (q, k, v, documents(2, length, seed=length))
    options = {"scale": 0.35, "window_tokens": window, "softcap": 5.0 if window == 200 else None}
    same(outcome("blocked", *case, **options), outcome("reference", *case, **options))


# Groups of 1, 2 and 8; a length with padding; with a window, backward kernels that are not fused.
@pytest.mark.parametrize(
    "heads, kv_heads, length, window, softcap",
    [
        (2, 2, 256, None, None),
        (4, 2, 200, None, None),
        (8, 1, 256, None, 3.0),
        (4, 2, 768, 150, None),
        (2, 1, 640, 300, 2.0),
    ],
)
def test_splash_equals_reference_with_gradients(heads, kv_heads, length, window, softcap):
    q, k, v = inputs(1, length, heads, kv_heads, 16, seed=length)
    case = (q, k, v, documents(1, length, seed=length))
    options = {"scale": 0.35, "window_tokens": window, "softcap": softcap}
    same(outcome("splash_interpret", *case, **options), outcome("reference", *case, **options))


# Three blocks of keys: six query heads and their key heads all at once, or a key head at a time.
@pytest.mark.parametrize("most, groups", [(3, 1), (2, 3), (1, 3)])
def test_heads_in_groups_equal_reference_with_gradients(monkeypatch, most, groups):
    monkeypatch.setattr(splash, "_LONGEST_BLOCK", ((512, 128),))
    monkeypatch.setattr(splash, "_FEW_KEY_BLOCKS", 3)
    monkeypatch.setattr(splash, "_MOST_GRADIENTS", most)
    splash.kernel.cache_clear()
    q, k, v = inputs(2, 384, 6, 3, 16)
    segments = documents(2, 384)

    def total(q):
        return attend("splash_interpret", q, k, v, segments, **PLAIN).sum()

    try:
        found = outcome("splash_interpret", q, k, v, segments, **PLAIN)
        backward = kernels_in(jax.grad(total), q)
    finally:
        splash.kernel.cache_clear()
    same(found, outcome("reference", q, k, v, segments, **PLAIN))
    assert backward["dkv"] == groups and backward["dq"] == 0


@pytest.mark.parametrize("kernel", ["reference", *KERNELS])
def test_huge_scores_and_padding_stay_finite(kernel):
    q, k, v = inputs(1, 6, 2, 2, 4)
    segments = jnp.array([[1, 1, 1, 0, 0, 0]])
    out, grads = outcome(kernel, q * 1e4, k * 1e4, v, segments, **PLAIN)
    assert all(jnp.isfinite(x).all() for x in (out, *grads))


@pytest.mark.parametrize("kernel", KERNELS)
def test_bfloat16_keeps_its_dtype(kernel):
    q, k, v = (x.astype(jnp.bfloat16) for x in inputs(1, 9, 4, 2, 8))
    segments = jnp.ones((1, 9), jnp.int32)
    outs = [attend(name, q, k, v, segments, **PLAIN) for name in (kernel, "reference")]
    assert all(out.dtype == jnp.bfloat16 for out in outs)
    np.testing.assert_allclose(*(np.asarray(out, np.float32) for out in outs), atol=0.03)


def kernels_in(function, *arrays):
    """How often each kernel stands in the program of a function."""
    text = str(jax.make_jaxpr(function)(*arrays))
    return {name: text.count(f"name=splash_mha_{name}_") for name in ("fwd", "dq", "dkv")}


@pytest.mark.parametrize(("heads", "kv_heads", "softcap"), [(4, 2, None), (3, 1, 2.0)])
def test_looking_back_is_the_last_row_of_reference(heads, kv_heads, softcap):
    """With keys in any order, and slots that hold nothing."""
    q, k, v = inputs(2, 9, heads, kv_heads, 8)
    segments = jnp.ones((2, 9), jnp.int32)
    options = {"scale": 0.35, "window_tokens": None, "softcap": softcap}
    want = attention.reference(q, k, v, segments, **options)[:, -1:]
    order = np.random.default_rng(0).permutation(9)
    k, v = (jnp.pad(x[:, order], ((0, 0), (0, 3), (0, 0), (0, 0))) for x in (k, v))
    found = attention.look_back(
        attention.Options(**options),
        q[:, -1:],
        k.transpose(0, 2, 3, 1),
        v.swapaxes(1, 2),
        jnp.broadcast_to(jnp.arange(12) < 9, (2, 12)),
    )
    np.testing.assert_allclose(found, want, atol=2e-6)


def test_auto_follows_the_platform():
    q, k, v = inputs(2, 256, 4, 2, 16)
    segments = documents(2, 256)

    def run(q, k, v):
        return attention.attend("auto", q, k, v, segments, **PLAIN)

    assert kernels_in(run, q, k, v)["fwd"] == 0
    tpu = AbstractDevice(device_kind="TPU v5", num_cores=1, platform="tpu")
    axes = (AxisType.Auto,) * len(sharding.MESH_AXES)
    mesh = AbstractMesh((1, 2, 1, 1, 1), sharding.MESH_AXES, axis_types=axes, abstract_device=tpu)
    with jax.sharding.use_abstract_mesh(mesh):
        assert kernels_in(run, q, k, v)["fwd"] == 1


def test_a_policy_that_saves_the_name_runs_no_kernel_twice():
    q, k, v = inputs(1, 128, 2, 1, 8)
    segments, policies = documents(1, 128), jax.checkpoint_policies

    def loops(policy):
        """Every interpreted kernel is a loop, over heads here."""

        def run(q, k, v):
            return attention.attend("splash_interpret", q, k, v, segments, **PLAIN).sum()

        made = jax.jit(jax.value_and_grad(jax.checkpoint(run, policy=policy)))
        return made.lower(q, k, v).compile().as_text().count(" while(")

    # Forward, forward again, backward; or forward, backward.
    assert loops(policies.nothing_saveable) == 3
    assert loops(policies.save_only_these_names(attention.NAME)) == 2


# Of 12 heads a device has 6, 3 or all: whole groups of them, parts of one, and parts of several.
HEADS, LENGTH = 12, 384
CASES = [
    *(("blocked", {"tensor": 2}, kv_heads) for kv_heads in (3, 6)),
    *(("blocked", {"tensor": 4}, kv_heads) for kv_heads in (1, 4, 6)),
    ("blocked", {"context": 2, "tensor": 2}, 2),
    ("blocked", {"data": 2, "expert": 2}, 2),
    # Rows of 192 per device, which splash pads.
    ("splash_interpret", {"context": 2, "tensor": 2}, 3),
    ("splash_interpret", {"tensor": 4}, 2),
]


def case_of(kv_heads):
    """Arrays and options; with an odd number of key heads a window, from one chunk into another."""
    window, softcap = (100, 3.0) if kv_heads % 2 else (None, None)
    arrays = (*inputs(4, LENGTH, HEADS, kv_heads, 8, seed=kv_heads), documents(4, LENGTH))
    return arrays, {"scale": 0.35, "window_tokens": window, "softcap": softcap}


def on_mesh(kernel, sizes, kv_heads):
    """`outcome` under a mesh, in natural order."""
    sizes = {"data": 1, "fsdp": 1, "tensor": 1} | sizes
    mesh = sharding.make(sharding.Mesh(**sizes), jax.devices()[: math.prod(sizes.values())])
    order = context.order(LENGTH, mesh.shape["context"])
    natural = context.natural(LENGTH, mesh.shape["context"])
    arrays, options = case_of(kv_heads)
    rows = NamedSharding(mesh, sharding.spec(("batch", "length")))
    arrays = [jax.device_put(x[:, order], rows) for x in arrays]
    with jax.set_mesh(mesh):
        found = outcome(kernel, *arrays, order, **options)
    return jax.tree.map(lambda x: np.asarray(x)[:, natural], found)


@pytest.fixture(scope="module")
def four_devices(tmp_path_factory):
    """What `main` made on four emulated devices."""
    out = tmp_path_factory.mktemp("attention") / "out.pickle"
    devices.run_script(__file__, out)
    return pickle.loads(out.read_bytes())  # noqa: S301 (our own, made a moment ago)


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{k} {m} {n}" for k, m, n in CASES])
def test_the_mesh_changes_no_number(number, four_devices):
    arrays, options = case_of(CASES[number][2])
    same(four_devices[number], outcome("reference", *arrays, **options))


def main(out):
    pathlib.Path(out).write_bytes(pickle.dumps([on_mesh(*case) for case in CASES]))


if __name__ == "__main__":
    main(sys.argv[1])
