# SPDX-License-Identifier: Apache-2.0
"""What is kept arrives, what is reset is fresh, and a restore that did nothing is refused."""

import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny_run as tiny

from midjax import checkpoint, trees
from midjax.model import hf
from midjax.train import loop, prepare, start
from midjax.train.optimizers import lion as lion_lib
from midjax.train.optimizers import optimizer as optimizers


def events(run_dir):
    return [json.loads(line) for line in (run_dir / "events.jsonl").open()]


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


# ---- every part kept or reset ----


def saved(run_dir, step):
    """A checkpoint's arrays as NumPy has them, read by Orbax alone: name -> array."""
    found = {}
    for item in ("params", "opt_state"):
        place = pathlib.Path(run_dir) / "checkpoints" / str(step) / item
        handler = ocp.PyTreeCheckpointHandler()
        there = handler.metadata(place.resolve()).tree
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), there)
        tree = handler.restore(place.resolve(), args=ocp.args.PyTreeRestore(restore_args=how))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            found["/".join([item, *(key.key for key in path)])] = np.asarray(leaf)
    return found


def adamw(arrays, gradients, count, lr, moments=True):
    """Paths -> parameters after one update of tiny.adamw, from saved arrays, in float64.

    Algorithm 2 of 1711.05101 after a clip at a global norm of 1.
    """
    norm = np.sqrt(sum(np.square(np.float64(g)).sum() for g in gradients.values()))
    after = {}
    for name, g in gradients.items():
        g = np.float64(g) / max(norm, 1.0)
        p = np.float64(arrays[f"params/{name}"])
        mu, nu = (
            np.float64(arrays[f"opt_state/moments/{kind}/{name}"]) * moments
            for kind in ("mu", "nu")
        )
        mu, nu = 0.9 * mu + 0.1 * g, 0.95 * nu + 0.05 * g * g
        t = count + 1
        direction = mu / (1 - 0.9**t) / (np.sqrt(nu / (1 - 0.95**t)) + 1e-8)
        decay = 0.0 if name == "embed" or name.endswith("norm") else 0.1
        after[name] = p - lr * (direction + decay * p)
    return after


def changed(kind, parts):
    """A Start of that kind with these parts turned the other way."""
    kept = start.KEPT[kind]
    return {
        "kind": kind,
        "keep": tuple(p for p in parts if p not in kept),
        "reset": tuple(p for p in parts if p in kept),
    }


GROUPS = (("moments", "adam_count"), ("schedule",), ("step",), ("data", "rng"))
KINDS = ("resume", "anneal", "weights")
TABLE = [(kind, parts) for kind in KINDS for parts in ((), *((part,) for part in start.PARTS))] + [
    ("anneal", sum(some, ())) for n in (2, 3, 4) for some in itertools.combinations(GROUPS, n)
]


def why_refused(parts):
    if "params" not in parts:
        return "would be a fresh start"
    if ("moments" in parts) != ("adam_count" in parts):
        return "only one of 'moments' and 'adam_count'"
    return None


@pytest.fixture(scope="module")
def source_arrays(finished):
    return saved(finished / "run", 8)


@jax.jit
def first_update(params, opt_state, gradients, lr):
    directions, after = optimizers.make(tiny.adamw()).update(gradients, opt_state, params)
    return jax.tree.map(lambda p, d: p - lr * d, params, directions), after["adam_count"]


@pytest.mark.parametrize(
    ("kind", "parts"), TABLE, ids=lambda x: x if isinstance(x, str) else "-".join(x)
)
def test_each_part_is_kept_or_reset(finished, source_arrays, kind, parts):
    """Arrays, counts, places, rate, next update. Source: 8 updates, rate 0.01, seed 1."""
    kept = set(start.KEPT[kind]) ^ set(parts)
    asked = {"run": str(finished / "run"), "allow_lr_jump": "for the table"}
    if reason := why_refused(kept):
        with pytest.raises(ValueError, match=reason):
            tiny.begin(**asked, **changed(kind, parts))
        return
    config = tiny.train(
        finished, "never-written", steps=12, start=tiny.begin(**asked, **changed(kind, parts)),
        data=tiny.data(finished / "tokens", tiny.mixture(seed=99)),
        schedule=tiny.wsd(start_lr=2e-3, warmup_steps=4),
    )  # fmt: skip
    if "data" in kept and "rng" not in kept:
        with pytest.raises(
            start.StartError, match=r"seed was 1 and is 99 \(put 'rng' in Start.keep"
        ):
            prepare.prepare(config)
        return
    begun = loop.begin(config)
    prepared, state = begun.prepared, begun.state

    arrays = {"params": state.params, "opt_state": dict(state.opt_state)}
    for name, array in trees.named_leaves(arrays):
        want = source_arrays[name]
        if not name.startswith("params/") and "moments" not in kept:
            want = np.zeros_like(want)
        np.testing.assert_array_equal(np.asarray(array), want, err_msg=name)
    assert int(state.opt_state["adam_count"]) == (8 if "adam_count" in kept else 0)
    assert int(state.schedule_count) == (8 if "schedule" in kept else 0)
    assert int(state.step) == prepared.first_step == (8 if "step" in kept else 0)
    assert prepared.total_steps - prepared.first_step == (4 if "step" in kept else 12)
    assert prepared.config.data.mixture.seed == (1 if "rng" in kept else 99)
    goes_on = {"data", "step"} <= kept
    assert prepared.first_row == (8 * tiny.B if goes_on else 0)
    drawn = prepared.loader.order.drawn(prepared.first_row)
    begins = sum(drawn.values()) + sum(prepared.position.base_rows.values())
    assert begins == (8 * tiny.B if "data" in kept else 0)

    lr = prepared.lr(int(state.schedule_count))
    assert lr == pytest.approx(1e-2 if "schedule" in kept else 2e-3)
    rng = np.random.default_rng(0)
    gradients = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(p.dtype), state.params)
    after, count = first_update(state.params, dict(state.opt_state), gradients, lr)
    age = 8 if "adam_count" in kept else 0
    want = adamw(source_arrays, dict(trees.named_leaves(gradients)), age, lr, "moments" in kept)
    assert int(count) == age + 1
    for name, array in trees.named_leaves(after):
        np.testing.assert_allclose(array, want[name], rtol=2e-5, atol=2e-7, err_msg=name)


def test_the_first_update_of_anneal_and_weights_differs_by_the_moments_alone(source):
    """Of real runs: what both leave after one update, from the source's arrays and NumPy."""
    ends = {}
    for kind in ("anneal", "weights"):
        first = tiny.begin(kind, run=str(source / "run"))
        config = tiny.anneal(source, f"first-{kind}", steps=1, start=first)
        loop.run(config)
        ends[kind] = saved(config.run_dir, 1)
    arrays = saved(source / "run", 8)
    # With fresh moments, mu after one update is (1 - b1) times the clipped gradient.
    mean = "opt_state/moments/mu/"
    gradients = {n.removeprefix(mean): 10 * x for n, x in ends["weights"].items() if mean in n}
    with_moments = adamw(arrays, gradients, 8, 1e-2)
    without = adamw(arrays, gradients, 0, 1e-2, moments=False)
    largest = 0.0
    for name in gradients:
        found = ends["anneal"][f"params/{name}"] - ends["weights"][f"params/{name}"]
        want = with_moments[name] - without[name]
        np.testing.assert_allclose(found, want, atol=2e-6, err_msg=name)
        largest = max(largest, np.abs(want).max())
    assert largest > 1e-3  # and that is no rounding


# ---- another dtype, another optimizer ----


def begun(source, name, **kwargs):
    return loop.begin(tiny.anneal(source, name, **kwargs))


def test_float32_is_cast_to_bfloat16_and_back(source, capsys):
    narrow = {
        "model": tiny.model(param_dtype="bfloat16"),
        "optimizer": tiny.adamw(mu_dtype="bfloat16"),
    }
    config = tiny.anneal(source, "narrow", steps=1, **narrow)
    there = loop.begin(config)
    arrays = saved(source / "run", 8)
    state = {"params": there.state.params, "opt_state": dict(there.state.opt_state)}
    for name, array in trees.named_leaves(state):
        wanted = arrays[name]
        if name.startswith(("params/", "opt_state/moments/mu/")):
            wanted = wanted.astype(jnp.bfloat16)
        assert array.dtype == wanted.dtype, name
        np.testing.assert_array_equal(np.asarray(array), wanted, err_msg=name)
    loop.go(there)
    said = capsys.readouterr().out
    assert "params cast, float32 -> bfloat16: 12 arrays, first params/embed" in said
    assert "mu of 12" in said and "cast: float32 -> bfloat16" in said

    back = tiny.begin("anneal", run=config.run_dir, allow_lr_jump="a test")
    wide = begun(source, "wide", start=back, schedule=tiny.wsd())
    arrays = saved(config.run_dir, 1)
    state = {"params": wide.state.params, "opt_state": dict(wide.state.opt_state)}
    for name, array in trees.named_leaves(state):
        wanted = arrays[name] if name.endswith("count") else arrays[name].astype(np.float32)
        assert array.dtype == wanted.dtype, name
        np.testing.assert_array_equal(np.asarray(array), wanted, err_msg=name)


def test_another_optimizer_takes_over_what_it_has_too(source, capsys):
    lion = lion_lib.Lion(b1=0.9, b2=0.95, mu_dtype="float32", weight_decay=0.1, clip_norm=None)
    there = begun(source, "lion", optimizer=lion, steps=1)
    arrays = saved(source / "run", 8)
    assert set(there.state.opt_state["moments"]) == {"mu"}
    for name, array in trees.named_leaves(there.state.opt_state["moments"]):
        np.testing.assert_array_equal(array, arrays[f"opt_state/moments/{name}"], err_msg=name)
    loop.go(there)
    assert "nu of 12" in (said := capsys.readouterr().out) and "not used" in said
    (event,) = (e for e in events(source / "lion") if e["event"] == "start")
    assert any(sentence.startswith("nu of 12") for sentence in event["arrays"])

    # And back: its mu is not enough for AdamW, whose means stand or fall together.
    back = tiny.begin("anneal", run=str(source / "lion"), allow_lr_jump="a test")
    again = begun(source, "again", start=back, schedule=tiny.wsd())
    assert int(again.state.opt_state["adam_count"]) == 0
    assert all((x == 0).all() for x in jax.tree.leaves(again.state.opt_state["moments"]))
    assert any("begins at 0" in sentence for sentence in again.prepared.taken.told())


def test_clipping_that_came_or_went_changes_no_array(source):
    there = begun(source, "unclipped", optimizer=tiny.adamw(clip_norm=None))
    assert there.prepared.taken.told() == []
    arrays = saved(source / "run", 8)
    for name, array in trees.named_leaves({"opt_state": dict(there.state.opt_state)}):
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)


# ---- proof ----


def nothing_restored(run_dir, step, targets, *, unused):
    """What a restore that silently did nothing leaves: the arrays of a fresh state."""
    return jax.tree.map(lambda t: jax.numpy.zeros(t.shape, t.dtype), dict(targets))


def test_a_restore_that_did_nothing_is_refused(source, monkeypatch):
    monkeypatch.setattr(checkpoint, "restore", nothing_restored)
    with pytest.raises(start.StartError, match=r"norm of (params|mu|nu) is .* the restore did not"):
        loop.begin(tiny.anneal(source, "nothing"))


def test_a_restore_that_lost_only_the_moments_is_refused(source, monkeypatch):
    real = checkpoint.restore

    def lossy(run_dir, step, targets, *, unused):
        found = real(run_dir, step, targets, unused=unused)
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
