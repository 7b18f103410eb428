# SPDX-License-Identifier: Apache-2.0
"""The description of a foreign checkpoint, and the importer of the docstring, run as printed."""

import re
import textwrap

import imported
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from midjax import trees
from midjax.importing import convert, foreign
from midjax.model import sharding, transformer

MESH = sharding.make(imported.MESH, jax.devices()[:1])


def test_the_importer_of_the_docstring_works(tmp_path):
    """Its code is taken from the docstring; only the names that it leaves out are filled in."""
    model = imported.model()
    params = transformer.init(model, jax.random.key(0))
    arrays = {}
    for name, leaf in trees.named_leaves(params):
        theirs = {"layers/wq": "attn/q"}.get(name, name)
        value = np.asarray(leaf)
        if name == "layers/wq":  # [L, D, N, H] -> [D, L, N * H]
            value = np.moveaxis(value.reshape(3, 32, 32), 0, 1)
        for prefix, factor in (("", 1.0), ("m/", 0.5), ("v/", 0.25)):
            arrays[prefix + theirs] = value * np.float32(factor)
    np.savez(tmp_path / "state.npz", updates=7, **arrays)

    code = textwrap.dedent(re.search(r"    def opened.*?\n\n    convert", foreign.__doc__, re.S)[0])
    code = code.removesuffix("convert").replace(
        "...                         # every name of transformer.abstract(model)", "**rest"
    )
    code = code.replace("adam_count=..., schedule_count=...", "adam_count=7, schedule_count=7")
    rest = {
        name: foreign.Take(theirs=(name,))
        for name, _ in trees.named_leaves(params)
        if name not in ("embed", "layers/wq")
    }
    space = {"np": np, "jnp": jnp, "jax": jax, "foreign": foreign, "rest": rest}
    exec(code, space)  # noqa: S102 - the module's own docstring
    opened = space["opened"](str(tmp_path / "state.npz"), model)
    record = convert.write(opened, output=str(tmp_path / "run"), mesh=MESH)
    assert record["left out"] == {"updates": "read as the step"} and record["step"] == 7
    found, _ = imported.restored(str(tmp_path / "run"), 7, model)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), found, params)))
    norms = record["norms"]
    assert norms["mu"] == pytest.approx(norms["params"] / 2)
    assert norms["nu"] == pytest.approx(norms["params"] / 4)


def described(**kwargs):
    given = {"origin": {"format": "mine", "path": "x"}, "model": imported.model(), "read": dict}
    return foreign.Foreign(**(given | kwargs))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"adam_count": 3}, "come together or not at all"),
        ({"moment": lambda kind, name: name}, "come together or not at all"),
        ({"read": None}, "either read, with params, or load"),
        ({"load": lambda targets: targets}, "either read, with params, or load"),
        (
            {
                "read": None,
                "load": lambda targets: targets,
                "moment": lambda kind, name: name,
                "adam_count": 1,
                "schedule_count": 1,
                "lr": foreign.Rate(last=1.0, next=1.0, peak=1.0),
            },
            "either read, with params, or load",
        ),
    ],
)
def test_descriptions_that_cannot_be(fields, message):
    with pytest.raises(foreign.ForeignError, match=message):
        described(**fields)


def test_a_model_that_is_given_must_agree_but_for_its_numerics():
    found = imported.model()
    assert foreign.agree(None, found, "there") is found
    given = imported.model(remat="full", compute_dtype="bfloat16", initializer_std=0.5)
    assert foreign.agree(given, found, "there") is given
    with pytest.raises(foreign.ForeignError, match="ffn_dim: there 64, given 48; norm_eps: there"):
        foreign.agree(imported.model(ffn_dim=48, norm_eps=1e-6), found, "there")


def test_long_lists_are_cut():
    assert foreign.listed(["a", "b"]) == "a; b"
    assert foreign.listed([str(i) for i in range(20)]).endswith("11 and 8 more")


def test_the_files_of_a_tokenizer(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no tokenizer.json"):
        foreign.read_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("not a tokenizer's")
    assert foreign.read_tokenizer(str(tmp_path)) == {"tokenizer.json": b"{}"}
