# SPDX-License-Identifier: Apache-2.0
"""What is missing, too much, of another shape or dtype, or used in part, each by name."""

import dataclasses

import imported
import jax
import jax.numpy as jnp
import pytest

from midjax import trees
from midjax.importing import fit, foreign
from midjax.model import transformer

MODEL = imported.model()
SHAPES = dict(trees.named_leaves(transformer.abstract(MODEL)))


def described(**kwargs):
    """A checkpoint that has our own names, with moments."""
    arrays = {kind + name: x for kind in ("", "mu/", "nu/") for name, x in SHAPES.items()}
    given = {
        "origin": {"format": "mine", "path": "x"},
        "model": MODEL,
        "arrays": arrays,
        "read": dict,
        "params": {name: foreign.Take(theirs=(name,)) for name in SHAPES},
        "moment": lambda kind, name: f"{kind}/{name}",
        "adam_count": 3,
        "schedule_count": 3,
        "lr": foreign.Rate(last=1.0, next=1.0, peak=1.0),
    }
    return foreign.Foreign(**(given | kwargs))


def test_what_fits_is_taken_and_what_is_left_out_has_a_reason():
    assert fit.check(described()) == {}
    more = described().arrays | {"rng/a": SHAPES["embed"], "rng/b": SHAPES["embed"]}
    assert fit.check(described(arrays=more, left_out={"rng/*": "random"})) == {
        "rng/a": "random",
        "rng/b": "random",
    }


def without(mapping, *names):
    return {name: value for name, value in mapping.items() if name not in names}


def shaped(name, *shape, dtype=jnp.float32):
    return described().arrays | {name: jax.ShapeDtypeStruct(shape, dtype)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: {"params": without(described().params, "head")}, "nothing there fills head"),
        (
            lambda: {"params": without(described().params, "head")},
            "head float32[32, 128] is there and nothing uses it",
        ),
        (
            lambda: {"params": described().params | {"layers/wz": foreign.Take(theirs=("embed",))}},
            "the model has no layers/wz",
        ),
        (
            lambda: {"arrays": without(described().arrays, "nu/embed")},
            "nu of embed needs nu/embed, which is not there",
        ),
        (
            lambda: {"arrays": shaped("mu/embed", 128, 31)},
            "mu of embed is float32[128, 32] here, and mu/embed float32[128, 31] makes float32"
            "[128, 31]",
        ),
        (
            lambda: {"arrays": shaped("extra", 2)},
            "extra float32[2] is there and nothing uses it",
        ),
        (
            lambda: {
                "params": described().params
                | {"embed": foreign.Take(theirs=("embed",), change=lambda x: x.reshape(5, 5))}
            },
            "embed is float32[128, 32] here and cannot be made of embed float32[128, 32]: ",
        ),
        (
            lambda: {
                "arrays": shaped("embed", 130, 32),
                "params": described().params
                | {"embed": foreign.Take(theirs=("embed",), change=lambda x: x[:128])},
                "moment": None,
                "adam_count": None,
                "schedule_count": None,
                "lr": None,
                "left_out": {"[mn]u/*": "no moments wanted"},
            },
            "of the 4160 numbers of embed, 4096 are used",
        ),
        (
            lambda: {"model": dataclasses.replace(MODEL, param_dtype="bfloat16")},
            "embed is bfloat16 here, and embed float32[128, 32] would be rounded to it",
        ),
    ],
)
def test_findings_are_named(change, message):
    with pytest.raises(foreign.ForeignError) as error:
        fit.check(described(**change()))
    assert message in str(error.value)


def test_mu_keeps_its_dtype_where_all_of_it_is_bfloat16():
    half = {
        name: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) if name.startswith("mu/") else x
        for name, x in described().arrays.items()
    }
    some = half | {"mu/embed": SHAPES["embed"]}
    for arrays, dtype in ((half, "bfloat16"), (some, "float32")):
        found = described(arrays=arrays)
        assert {x.dtype.name for x in fit.shapes(found, "mu").values()} == {dtype}
        assert {x.dtype.name for x in fit.shapes(found, "nu").values()} == {"float32"}
        assert fit.check(found) == {}
