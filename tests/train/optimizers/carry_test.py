# SPDX-License-Identifier: Apache-2.0
"""What one optimizer takes over from another's checkpoint."""

import jax
import pytest
import tiny_optimizer as tiny

from midjax import trees
from midjax.train.optimizers import carry, optimizer

MATRICES = set(tiny.MATRICES) - {"embed", "head"}  # Muon's
OTHERS = set(tiny.SHAPES) - MATRICES


def state(config, **shapes) -> dict[str, str]:
    """Names of a checkpoint with that optimizer, parameters and counts among them."""
    made = optimizer.make(config)
    params = trees.nested(
        {n: jax.ShapeDtypeStruct(s, "float32") for n, s in (tiny.SHAPES | shapes).items()}
    )
    parts = optimizer.to_parts(jax.eval_shape(made.init, params))
    return trees.describe({"params": params, "opt_state": parts})


def moments(kind, names) -> set[str]:
    return {f"opt_state/moments/{kind}/{name}" for name in names}


ADAMW, LION, MUON, ADAFACTOR = (
    state(tiny.EVERY[name]) for name in ("adamw", "lion", "muon", "adafactor-momentum")
)


@pytest.mark.parametrize("kind", tiny.EVERY)
def test_an_optimizer_takes_over_all_of_its_own(kind):
    of = state(tiny.EVERY[kind])
    found = carry.carry(of, of)
    assert set(found.kept) == {name for name in of if "/moments/" in name}
    assert found.exact and found.count_kept and found.told() == []


def test_lion_and_muon_take_over_adams_mean_of_gradients():
    found = carry.carry(ADAMW, LION)
    assert set(found.kept) == moments("mu", tiny.SHAPES) and not found.new
    assert set(found.unused) == moments("nu", tiny.SHAPES) and found.count_kept
    found = carry.carry(ADAMW, MUON)
    assert set(found.kept) == moments("mu", tiny.SHAPES) | moments("nu", OTHERS)
    assert set(found.unused) == moments("nu", MATRICES) and not found.new and found.count_kept
    (told,) = found.told()
    assert told == (
        "nu of 4 (layers/expert_down, layers/w_up, layers/wo, ...) not used: this optimizer has "
        "no such moment"
    )


@pytest.mark.parametrize("source", [LION, MUON, ADAFACTOR])
def test_adams_moments_and_count_are_reset_together(source):
    found = carry.carry(source, ADAMW)
    assert found.kept == () and not found.count_kept
    assert set(found.new) == moments("mu", tiny.SHAPES) | moments("nu", tiny.SHAPES)
    assert found.told()[0] == "the moments' age (adam_count) begins at 0"
    if source is MUON:  # embed's are there, and are given up for those that are not
        why = found.new["opt_state/moments/nu/embed"]
        assert "reset with all" in why and "nu/layers/expert_down" in why
        assert found.unused["opt_state/moments/nu/embed"] == why


def test_muon_keeps_its_own_mean_where_adams_are_reset():
    found = carry.carry(LION, MUON)
    assert set(found.kept) == moments("mu", MATRICES) and not found.count_kept
    assert set(found.new) == moments("mu", OTHERS) | moments("nu", OTHERS)


def test_adafactors_moments_are_nobody_elses():
    for a, b in ((ADAMW, ADAFACTOR), (ADAFACTOR, LION), (ADAFACTOR, MUON)):
        found = carry.carry(a, b)
        assert not found.kept and not found.count_kept
        assert set(found.unused) == {name for name in a if "/moments/" in name}
    whole = state(tiny.adafactor_config(b1=0.9, factored=False))
    found = carry.carry(ADAFACTOR, whole)
    assert set(found.kept) == moments("mu_update", tiny.SHAPES) and not found.count_kept


def test_shapes_and_new_parameters():
    found = carry.carry(state(tiny.EVERY["adamw"], embed=(9, 6)), ADAMW)
    assert not found.kept and not found.count_kept
    why = found.new["opt_state/moments/mu/embed"]
    assert why == "its shape is [9, 6] in the checkpoint, [7, 6] here"
    grown = state(tiny.EVERY["lion"], **{"layers/w_gate": (2, 6, 10)})
    found = carry.carry(LION, grown)
    assert set(found.new) == moments("mu", ["layers/w_gate"]) and found.count_kept
    assert set(found.kept) == moments("mu", tiny.SHAPES)


def test_another_dtype_is_kept_and_said():
    found = carry.carry(ADAMW, state(tiny.adamw_config(mu_dtype="bfloat16")))
    assert set(found.cast) == moments("mu", tiny.SHAPES)
    assert set(found.cast.values()) == {"float32 -> bfloat16"}
    assert found.count_kept and not found.new and not found.unused and not found.exact
    assert found.told()[0].startswith("mu of 9 (embed, final_norm, head, ...) cast: float32 -> ")


def test_no_moments_at_all():
    found = carry.carry({"params/embed": "float32[7, 6]"}, ADAMW)
    assert not found.kept and not found.unused and not found.count_kept
    assert set(found.new.values()) == {"the checkpoint has no such moment"}
