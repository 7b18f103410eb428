# SPDX-License-Identifier: Apache-2.0
"""What comes back is what was saved, or an error: never something else in silence."""

import os
import pathlib
import resource

import gcs_bucket
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from midjax import checkpoint, files

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
    arrays_of = facts["manifest"]["arrays"]
    assert arrays_of["params/embed"] == "float32[6, 4]"
    assert arrays_of["opt_state/moments/nu/layers/wq"] == "bfloat16[2, 4, 2, 3]"
    assert arrays_of["opt_state/adam_count"] == "int32[]" and len(arrays_of) == 2 + 4 + 2


def test_norms_are_those_of_numpy(tmp_path):
    save(tmp_path, 1)
    norms = checkpoint.read_facts(str(tmp_path), 1)["manifest"]["norms"]
    tree = arrays(1)
    for name, part in {"params": tree["params"], **tree["opt_state"]["moments"]}.items():
        flat = np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(part)])
        assert norms[name] == pytest.approx(np.linalg.norm(flat), rel=1e-6)


def test_arrays_may_be_donated_once_a_save_has_begun(tmp_path):
    given, expected = arrays(5), arrays(5)
    zeroed = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0, tree), donate_argnums=0)
    with checkpoint.Store(str(tmp_path), KEEP) as store:
        store.save(5, **given, data={}, facts={})
        jax.block_until_ready(zeroed(given))
    assert equal(checkpoint.restore(str(tmp_path), 5, targets("params", "opt_state")), expected)


def test_a_store_opens_nothing_before_it_must(tmp_path):
    with checkpoint.Store(str(tmp_path), KEEP) as store:
        store.wait()
        assert store.newest_step() is None
        assert not pathlib.Path(checkpoint.folder(str(tmp_path))).exists()
        store.prepare(**arrays(1))
        assert pathlib.Path(checkpoint.folder(str(tmp_path))).exists()
    save(tmp_path, 1, 3)
    with checkpoint.Store(str(tmp_path), KEEP) as store:
        assert store.newest_step() == 3
        with pytest.raises(checkpoint.CheckpointError, match="step 3 is there already"):
            store.save(2, **arrays(2), data={}, facts={})


def test_a_save_whose_sums_fail_leaves_no_checkpoint(tmp_path, monkeypatch):
    """The manifest is written in the background, after `save` has returned."""

    def fails():
        raise RuntimeError("device lost")

    monkeypatch.setattr(checkpoint.trees, "summary", lambda arrays: fails)
    with pytest.raises(RuntimeError, match="device lost"):
        save(tmp_path, 5)
    assert checkpoint.steps(str(tmp_path)) == []


def test_params_alone_read_no_moments(tmp_path):
    save(tmp_path, 1)
    root = pathlib.Path(checkpoint.folder(str(tmp_path))) / "1"
    for file in (root / "opt_state").rglob("*"):
        if file.is_file():
            file.unlink()
    assert equal(checkpoint.restore(str(tmp_path), 1, targets("params"))["params"],
                 arrays(1)["params"])  # fmt: skip


def test_a_checkpoint_without_optimizer_state(tmp_path):
    with checkpoint.Store(str(tmp_path), KEEP) as store:
        store.save(0, params=arrays(1)["params"], opt_state=None, data={}, facts={})
    found = checkpoint.restore(str(tmp_path), 0, targets("params"))
    assert equal(found["params"], arrays(1)["params"])
    assert set(checkpoint.read_facts(str(tmp_path), 0)["manifest"]["norms"]) == {"params"}
    with pytest.raises(checkpoint.CheckpointError, match="opt_state/adam_count: checkpoint absent"):
        checkpoint.restore(str(tmp_path), 0, targets("params", "opt_state"))


def test_keep_policy(tmp_path):
    save(tmp_path, 1, 2, 3, 4, 5, 6, 7)
    assert checkpoint.steps(str(tmp_path)) == [4, 6, 7]


def test_a_step_that_does_not_rise_is_refused(tmp_path):
    save(tmp_path, 3)
    with pytest.raises((checkpoint.CheckpointError, ValueError)):
        save(tmp_path, 2)


def data_files(run, step, item):
    """Where the bytes of arrays are. Which of them a restore reads is Orbax's affair."""
    root = pathlib.Path(checkpoint.folder(str(run))) / str(step) / item
    return [f for f in root.rglob("*") if f.is_file() and f.parent.name == "d"]


def test_every_damaged_byte_that_restores_is_found(tmp_path):
    """Orbax has no checksums of content: a flipped byte may restore without an error."""
    save(tmp_path, 1)
    good_values = arrays(1)["params"]
    refused = unchanged = 0
    for file in data_files(tmp_path, 1, "params"):
        good = file.read_bytes()
        for place in range(0, len(good), max(1, len(good) // 12)):
            bad = bytearray(good)
            bad[place] ^= 0x10
            file.write_bytes(bytes(bad))
            try:
                found = checkpoint.restore(str(tmp_path), 1, targets("params"))["params"]
            except checkpoint.DamagedError:
                refused += 1
            else:  # bytes that no array uses
                assert equal(found, good_values)
                unchanged += 1
        file.write_bytes(good)
    assert refused > 5, unchanged


def test_truncated_or_missing_files_are_damage(tmp_path):
    save(tmp_path, 1, 2)
    for file in data_files(tmp_path, 1, "params"):
        os.truncate(file, 10)
    with pytest.raises(checkpoint.DamagedError, match=r"step 1: cannot be restored") as caught:
        checkpoint.restore(str(tmp_path), 1, targets("params"))
    assert caught.value.run_dir == str(tmp_path) and caught.value.step == 1
    (pathlib.Path(checkpoint.folder(str(tmp_path))) / "2" / "manifest" / "metadata").unlink()
    with pytest.raises(checkpoint.DamagedError, match="cannot read manifest"):
        checkpoint.restore(str(tmp_path), 2, targets("params"))


@pytest.mark.parametrize("item", ["step", "data", "manifest"])
def test_a_changed_digit_of_the_json_is_damage(tmp_path, item):
    save(tmp_path, 1)
    file = pathlib.Path(checkpoint.folder(str(tmp_path))) / "1" / item / "metadata"
    old, new = {"step": ("1", "3"), "data": ("8", "9"), "manifest": ("0.5", "0.7")}[item]
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(checkpoint.DamagedError, match="is not what was saved"):
        checkpoint.read_facts(str(tmp_path), 1)


def test_an_emptied_manifest_is_damage_and_an_older_format_is_not(tmp_path):
    save(tmp_path, 1)
    file = pathlib.Path(checkpoint.folder(str(tmp_path))) / "1" / "manifest" / "metadata"
    file.write_text('{"format": 1}')
    with pytest.raises(checkpoint.CheckpointError, match="checkpoint format 1") as caught:
        checkpoint.read_facts(str(tmp_path), 1)
    assert type(caught.value) is checkpoint.CheckpointError
    file.write_text("{}")
    with pytest.raises(checkpoint.DamagedError, match="is not what was saved"):
        checkpoint.read_facts(str(tmp_path), 1)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("DATA_LOSS: bad chunk"), checkpoint.DamagedError),
        (ValueError("UNAVAILABLE: try again"), checkpoint.StorageError),
        (OSError("Input/output error"), checkpoint.StorageError),
        (PermissionError("no"), PermissionError),
        (MemoryError(), MemoryError),
    ],
)
def test_only_damage_is_called_damage(tmp_path, monkeypatch, error, kind):
    save(tmp_path, 1)

    def fails(*_, **__):
        raise error

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", fails)
    with pytest.raises(kind) as caught:
        checkpoint.restore(str(tmp_path), 1, targets("params"))
    assert type(caught.value) is kind


def test_a_disk_that_takes_no_more_is_told_from_a_bug(tmp_path):
    save(tmp_path, 1)
    store = checkpoint.Store(str(tmp_path), KEEP)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))  # bytes of a file
    try:
        with pytest.raises(checkpoint.StorageError) as caught:
            store.save(2, params={"w": jnp.ones((1 << 18,))}, opt_state=None, data={}, facts={})
            store.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.exit_code == 171 and str(tmp_path / "checkpoints") in str(caught.value)
    assert checkpoint.steps(str(tmp_path)) == [1]


def test_a_checkpoint_counts_when_what_is_behind_it_is_written(tmp_path):
    def fails():
        raise files.OutageError("rows of metrics could not be written")

    store = checkpoint.Store(str(tmp_path), KEEP)
    with pytest.raises(checkpoint.StorageError, match="rows of metrics could not"):
        store.save(1, **arrays(1), data={}, facts={}, settle=fails)
        store.wait()
    assert checkpoint.steps(str(tmp_path)) == []


def test_a_bucket_that_refuses_is_an_outage_and_no_damage(monkeypatch):
    run = "gs://bucket/run"
    bucket = gcs_bucket.install(monkeypatch)
    save(run, 1)
    assert checkpoint.steps(run) == [1]
    bucket.fails = lambda method, name: method == "POST" and "/2/" in name
    with pytest.raises(checkpoint.StorageError):
        save(run, 2)
    bucket.fails = lambda method, name: "/params/" in name
    with pytest.raises(checkpoint.StorageError) as caught:
        checkpoint.restore(run, 1, targets("params"))
    assert caught.value.exit_code == 171
    bucket.fails = lambda method, name: False
    assert checkpoint.steps(run) == [1]
    assert equal(checkpoint.restore(run, 1, targets("params"))["params"], arrays(1)["params"])


def test_another_shape_dtype_or_array_is_refused_by_name(tmp_path):
    save(tmp_path, 1)
    for name, shape, dtype in (
        ("embed", (7, 4), jnp.float32),
        ("embed", (6, 4), jnp.bfloat16),
        ("head", (4, 6), jnp.float32),
    ):
        wanted = targets("params")
        wanted["params"][name] = jax.ShapeDtypeStruct(
            shape, dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
        )
        with pytest.raises(checkpoint.CheckpointError, match=f"params/{name}: checkpoint") as e:
            checkpoint.restore(str(tmp_path), 1, wanted)
        assert type(e.value) is checkpoint.CheckpointError  # not damage: nothing is set aside


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


def test_bad_keep():
    with pytest.raises(ValueError, match="1 or more"):
        checkpoint.Keep(every_steps=0, last=1, forever_every_steps=None)
