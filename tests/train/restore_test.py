# SPDX-License-Identifier: Apache-2.0
"""What is kept arrives, what is reset is fresh, and a restore that did nothing is refused."""

import jax
import numpy as np
import pytest
import tiny_run as tiny

from midjax import checkpoint
from midjax.model import hf
from midjax.train import loop, start


def numpy_norm(tree):
    leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)]
    return np.linalg.norm(np.concatenate(leaves))


def test_anneal_keeps_moments_and_resets_schedule_step_and_data(source):
    begun = loop.begin(tiny.anneal(source))
    prepared, state = begun.prepared, begun.state
    saved = checkpoint.read_facts(str(source / "run"), 8)["manifest"]
    for name, tree in ({"params": state.params} | state.opt_state["moments"]).items():
        assert numpy_norm(tree) == pytest.approx(saved["norms"][name], rel=1e-6)
        assert saved["norms"][name] > 0
    assert int(state.opt_state["adam_count"]) == 8
    assert int(state.schedule_count) == 0 and int(state.step) == 0
    assert prepared.first_step == 0 and prepared.first_row == 0
    assert prepared.schedule.peak_lr == pytest.approx(1e-2)


def test_the_arrays_are_those_of_the_source_bit_for_bit(source):
    state = loop.begin(tiny.anneal(source)).state
    resumed = loop.begin(tiny.train(source)).state  # its own newest checkpoint
    assert int(resumed.step) == 8 and int(resumed.schedule_count) == 8
    for a, b in (
        (state.params, resumed.params),
        (state.opt_state["moments"]["mu"], resumed.opt_state["moments"]["mu"]),
        (state.opt_state["moments"]["nu"], resumed.opt_state["moments"]["nu"]),
    ):
        assert all((x == y).all() for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_weights_keep_params_only(source):
    config = tiny.train(source, "weights", start=tiny.begin("weights", run=str(source / "run")))
    state = loop.begin(config).state
    saved = checkpoint.read_facts(str(source / "run"), 8)["manifest"]["norms"]
    assert numpy_norm(state.params) == pytest.approx(saved["params"], rel=1e-6)
    assert numpy_norm(state.opt_state["moments"]["mu"]) == 0
    assert int(state.opt_state["adam_count"]) == 0


def test_kept_moments_matter(source):
    """The first update of an anneal differs from one with fresh moments: they are used."""
    norms = {}
    for kind in ("anneal", "weights"):
        first = tiny.begin(kind, run=str(source / "run"))
        config = tiny.anneal(source, f"first-{kind}", steps=1, start=first)
        norms[kind] = loop.run(config)["update_norm"]
    assert abs(norms["anneal"] - norms["weights"]) > 0.05 * norms["weights"]


def nothing_restored(run_dir, step, targets):
    """What a restore that silently did nothing leaves: the arrays of a fresh state."""
    return jax.tree.map(lambda t: jax.numpy.zeros(t.shape, t.dtype), dict(targets))


def test_a_restore_that_did_nothing_is_refused(source, monkeypatch):
    monkeypatch.setattr(checkpoint, "restore", nothing_restored)
    with pytest.raises(start.StartError, match=r"norm of (params|mu|nu) is .* the restore did not"):
        loop.begin(tiny.anneal(source, "nothing"))


def test_a_restore_that_lost_only_the_moments_is_refused(source, monkeypatch):
    real = checkpoint.restore

    def lossy(run_dir, step, targets):
        found = real(run_dir, step, targets)
        moments = jax.tree.map(jax.numpy.zeros_like, found["opt_state"]["moments"])
        return found | {"opt_state": found["opt_state"] | {"moments": moments}}

    monkeypatch.setattr(checkpoint, "restore", lossy)
    with pytest.raises(start.StartError, match=r"norm of (mu|nu) is 0 and was"):
        loop.begin(tiny.anneal(source, "lossy"))


def test_a_hugging_face_folder_gives_params_only(source, tmp_path):
    state = loop.begin(tiny.train(source)).state
    hf.save(str(tmp_path / "hf"), tiny.model(), jax.device_get(state.params), "float32")
    config = tiny.train(
        source, "from-hf", start=tiny.begin("weights", huggingface=str(tmp_path / "hf"))
    )
    begun = loop.begin(config)
    assert begun.prepared.origin.huggingface and int(begun.state.step) == 0
    for a, b in zip(*map(jax.tree.leaves, (begun.state.params, state.params)), strict=True):
        assert (a == b).all()
    assert all((m == 0).all() for m in jax.tree.leaves(begun.state.opt_state["moments"]["mu"]))
