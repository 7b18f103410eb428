# SPDX-License-Identifier: Apache-2.0
"""What comes back is what was saved, or an error: never something else in silence."""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from midjax import checkpoint

KEEP = checkpoint.Keep(every_steps=1, last=2, forever_every_steps=4)


def arrays(seed):
    rng = np.random.default_rng(seed)

    def tree():
        return {
            "embed": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32),
            "layers": {"wq": jnp.asarray(rng.normal(size=(2, 4, 2, 3)), jnp.bfloat16)},
        }

    counts = {"adam_count": jnp.int32(7), "schedule_count": jnp.int32(3)}
    return {"params": tree(), "opt_state": {"moments": {"mu": tree(), "nu": tree()}, **counts}}


def save(run, *steps):
    with checkpoint.Store(str(run), KEEP) as store:
        for step in steps:
            store.save(step, **arrays(step), data={"next_row": 8 * step}, facts={"lr": 0.5})


def targets(*items, seed=0):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one),
        {name: arrays(seed)[name] for name in items},
    )


def equal(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.dtype == y.dtype and (x == y).all() for x, y in pairs)


def test_round_trip_is_bit_identical(tmp_path):
    save(tmp_path, 5)
    assert equal(checkpoint.restore(str(tmp_path), 5, targets("params", "opt_state")), arrays(5))
    facts = checkpoint.read_facts(str(tmp_path), 5)
    assert facts["step"] == 5 and facts["data"] == {"next_row": 40}
    assert facts["manifest"]["lr"] == 0.5
    assert facts["manifest"]["shapes"] == {"embed": [6, 4], "layers/wq": [2, 4, 2, 3]}


def test_norms_are_those_of_numpy(tmp_path):
    save(tmp_path, 1)
    norms = checkpoint.read_facts(str(tmp_path), 1)["manifest"]["norms"]
    tree = arrays(1)
    for name, part in {"params": tree["params"], **tree["opt_state"]["moments"]}.items():
        flat = np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(part)])
        assert norms[name] == pytest.approx(np.linalg.norm(flat), rel=1e-6)


def test_params_alone_read_no_moments(tmp_path):
    save(tmp_path, 1)
    root = pathlib.Path(checkpoint.folder(str(tmp_path))) / "1"
    for file in (root / "opt_state").rglob("*"):
        if file.is_file():
            file.unlink()
    assert equal(checkpoint.restore(str(tmp_path), 1, targets("params"))["params"],
                 arrays(1)["params"])  # fmt: skip


def test_keep_policy(tmp_path):
    save(tmp_path, 1, 2, 3, 4, 5, 6, 7)
    assert checkpoint.steps(str(tmp_path)) == [4, 6, 7]


def test_a_step_that_does_not_rise_is_refused(tmp_path):
    save(tmp_path, 3)
    with pytest.raises((checkpoint.CheckpointError, ValueError)):
        save(tmp_path, 2)


def data_files(run, step, item):
    root = pathlib.Path(checkpoint.folder(str(run))) / str(step) / item
    return sorted((f for f in root.rglob("*") if f.is_file() and "/d/" in str(f)),
                  key=lambda f: f.stat().st_size)  # fmt: skip


def test_every_damaged_byte_that_restores_is_found(tmp_path):
    """Orbax has no checksums of content: a flipped byte may restore without an error."""
    save(tmp_path, 1)
    file = data_files(tmp_path, 1, "params")[-1]
    good = file.read_bytes()
    good_values = arrays(1)["params"]
    refused = unchanged = 0
    for place in range(0, len(good), max(1, len(good) // 25)):
        bad = bytearray(good)
        bad[place] ^= 0x10
        file.write_bytes(bytes(bad))
        try:
            found = checkpoint.restore(str(tmp_path), 1, targets("params"))["params"]
        except checkpoint.CheckpointError:
            refused += 1
        else:  # bytes that no array uses
            assert equal(found, good_values)
            unchanged += 1
    assert refused > 0, unchanged


def test_truncated_or_missing_files_are_one_kind_of_error(tmp_path):
    save(tmp_path, 1, 2)
    os.truncate(data_files(tmp_path, 1, "params")[-1], 10)
    with pytest.raises(checkpoint.CheckpointError, match=r"step 1: cannot be restored"):
        checkpoint.restore(str(tmp_path), 1, targets("params"))
    (pathlib.Path(checkpoint.folder(str(tmp_path))) / "2" / "manifest" / "metadata").unlink()
    with pytest.raises(checkpoint.CheckpointError, match="cannot read manifest"):
        checkpoint.restore(str(tmp_path), 2, targets("params"))


def test_another_shape_or_a_missing_array_is_refused(tmp_path):
    save(tmp_path, 1)
    for change in ({"embed": (7, 4)}, {"head": (4, 6)}):
        wanted = targets("params")
        for name, shape in change.items():
            wanted["params"][name] = jax.ShapeDtypeStruct(
                shape, jnp.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
            )
        with pytest.raises(checkpoint.CheckpointError, match="cannot be restored"):
            checkpoint.restore(str(tmp_path), 1, wanted)


def test_unfinished_and_set_aside_folders_do_not_count(tmp_path):
    save(tmp_path, 1, 2)
    root = pathlib.Path(checkpoint.folder(str(tmp_path)))
    (root / "3.orbax-checkpoint-tmp").mkdir()
    moved = checkpoint.set_aside(str(tmp_path), 2)
    assert checkpoint.steps(str(tmp_path)) == [1] and moved.endswith("2.damaged-0")
    save(tmp_path, 2)  # the step can be saved again, beside what was moved
    assert checkpoint.steps(str(tmp_path)) == [1, 2]


def test_no_checkpoints(tmp_path):
    assert checkpoint.steps(str(tmp_path / "nothing")) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8"])
def test_digest_sees_bits_and_places(dtype):
    x = jnp.arange(24).reshape(2, 3, 4).astype(dtype)
    digest = checkpoint.digests({"x": x})["x"]
    assert digest == checkpoint.digests({"x": jnp.array(np.array(x))})["x"]
    swapped = x.at[0, 0, 1].set(x[1, 2, 3]).at[1, 2, 3].set(x[0, 0, 1])
    for other in (x.at[1, 1, 1].set(0), swapped, jnp.flip(x, 0), x.swapaxes(0, 1)):
        assert checkpoint.digests({"x": other})["x"] != digest
    if dtype in ("float32", "bfloat16"):
        assert checkpoint.digests({"x": -x})["x"] != digest
        zero = jnp.zeros(3, dtype)
        assert checkpoint.digests({"x": -zero})["x"] != checkpoint.digests({"x": zero})["x"]


def test_bad_keep():
    with pytest.raises(ValueError, match="1 or more"):
        checkpoint.Keep(every_steps=0, last=1, forever_every_steps=None)
