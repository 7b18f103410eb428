# SPDX-License-Identifier: Apache-2.0
"""That bench-train still fits the product: it runs too long to be a test itself."""

import math
import pathlib
import sys

import jax
import pytest

from midjax.model import transformer

STEPS = pathlib.Path(__file__).parent / "train_steps"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(STEPS), *sys.path])
    import contest
    import midjax_step

    return contest, midjax_step


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_our_recipe_is_the_model_that_all_contestants_train(scripts, name, tmp_path):
    contest, midjax_step = scripts
    size = contest.SIZES[name]
    config = midjax_step.config(size, str(tmp_path / "tokens"), str(tmp_path / "run"), steps=3)
    assert config.data.row_tokens * config.data.batch_rows == size.batch_tokens == 4096
    shapes = transformer.abstract(config.model)
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) == size.parameters


def test_the_shared_weights_fill_every_parameter(scripts):
    contest, midjax_step = scripts
    size = contest.SIZES["tiny"]
    shapes = transformer.abstract(midjax_step.model(size))
    given = contest.weights(size)
    for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]:
        assert given.pop(path[-1].key).size == math.prod(leaf.shape)
    assert not given
