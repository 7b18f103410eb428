# SPDX-License-Identifier: Apache-2.0
"""One rotary embedding of a config.json: what is filled in, what is refused."""

import math

import pytest

from midjax.model import rope
from midjax.model.families import rope_keys, rope_read

LISTS = {"short_factor": [1, 1.5, 2, 4], "long_factor": [2, 3, 4, 8]}
PHI3 = {"type": "longrope", **LISTS}
PHIMOE = {**PHI3, "original_max_position_embeddings": 64}


def read(scaling, dialect=rope_keys.PLAIN, theta=10000, **theirs):
    return rope_read.read(theta, scaling, {"max_position_embeddings": 256} | theirs, 8, dialect)


def test_plain_types():
    none = rope.Rope(theta=1e4, scaling=rope.RopeScaling(kind="none"))
    assert read({}) == read({"rope_type": "default", "rope_theta": 3}) == none
    pi = rope.Rope(theta=1e4, scaling=rope.RopeScaling(kind="pi", factor=4.0))
    assert read({"type": "linear", "factor": 4}) == pi
    assert read({"rope_type": "linear", "type": "yarn", "factor": 4}) == pi  # the new name wins


def test_numbers_get_our_types():
    """JSON has 4 where we have 4.0: equal configs must be equal in their files too."""
    found = read({"rope_type": "longrope", **LISTS}, original_max_position_embeddings=64)
    assert type(found.theta) is type(found.scaling.factor) is float
    assert found.scaling.long_factors == (2.0, 3.0, 4.0, 8.0)
    assert {type(x) for x in found.scaling.long_factors} == {float}


def test_dynamic_takes_the_length_of_the_model():
    scaling = read({"rope_type": "dynamic", "factor": 2.0}).scaling
    assert (scaling.kind, scaling.original_context_tokens) == ("dynamic_ntk", 256)
    named = {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 256}
    assert read(named).scaling == scaling
    with pytest.raises(ValueError, match="max_position_embeddings = 512"):
        read(named, max_position_embeddings=512)
    with pytest.raises(ValueError, match="lacks max_position_embeddings"):
        read(named, max_position_embeddings=None)


def test_yarn_defaults_are_those_of_transformers():
    scaling = read({"rope_type": "yarn", "factor": 4}).scaling
    assert (scaling.original_context_tokens, scaling.truncate) == (256, True)
    assert (scaling.beta_fast, scaling.beta_slow, scaling.attention_factor) == (32.0, 1.0, None)
    lengths = {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 64}
    assert read(lengths).scaling.factor == 4.0


def test_mscale_becomes_the_attention_factor():
    deepseek = {
        "rope_type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 64,
        "mscale": 1.0,
        "mscale_all_dim": 0.8,
    }
    by = read(deepseek).scaling.attention_factor
    assert by == pytest.approx((0.1 * math.log(40) + 1) / (0.08 * math.log(40) + 1))
    assert read(deepseek | {"attention_factor": 1.5}).scaling.attention_factor == 1.5
    assert read(deepseek | {"mscale_all_dim": 0}).scaling.attention_factor is None
    assert read(deepseek | {"factor": 1.0}).scaling.attention_factor == 1.0


def test_longrope_takes_its_factor_from_the_lengths():
    for name in ("longrope", "su"):  # "su" is its name in the first Phi-3 files
        found = read(PHI3 | {"type": name}, rope_keys.PHI3, original_max_position_embeddings=64)
        assert (found.scaling.kind, found.scaling.factor) == ("longrope", 4.0)
        assert found.scaling.attention_factor is None
        assert rope.frequencies(found, 8)[1] == math.sqrt(1 + math.log(4) / math.log(64))
    short = read(PHI3, rope_keys.PHI3, original_max_position_embeddings=512)
    assert rope.frequencies(short, 8)[1] == 1.0  # as they do where the ratio is under 1


def test_mscales_are_phimoes_attention_factor():
    found = read(PHIMOE | {"short_mscale": 1.243, "long_mscale": 1.243}, rope_keys.PHIMOE)
    assert (found.scaling.attention_factor, found.scaling.factor) == (1.243, 4.0)
    found = read(PHIMOE | {"short_mscale": 1.2, "long_mscale": 1.3}, rope_keys.PHIMOE)
    original = found.scaling.original_context_tokens
    factors = [rope.frequencies(found, 8, original + more)[1] for more in (0, 1)]
    assert factors == [1.2, 1.3]
    with pytest.raises(ValueError, match="short_mscale 1.2 and long_mscale None; both"):
        read(PHIMOE | {"short_mscale": 1.2}, rope_keys.PHIMOE)
    with pytest.raises(ValueError, match="short_mscale None"):
        read(PHIMOE, rope_keys.PHIMOE)


def test_partial_rotary_stands_in_either_place():
    dialect = rope_keys.PHI3
    assert read({}, dialect, partial_rotary_factor=0.5).rotary_dims == 4
    assert read({"partial_rotary_factor": 0.5}, dialect).rotary_dims == 4
    assert read({}, dialect, partial_rotary_factor=0.85).rotary_dims == 6  # they cut 6.8
    assert read({"partial_rotary_factor": 1.0}, rope_keys.PLAIN).rotary_dims is None
    with pytest.raises(ValueError, match=r"0\.5 at the top level and 0\.75"):
        read({"partial_rotary_factor": 0.75}, dialect, partial_rotary_factor=0.5)
    with pytest.raises(ValueError, match=r"partial_rotary_factor = 0\.5"):
        read({}, rope_keys.PLAIN, partial_rotary_factor=0.5)


@pytest.mark.parametrize(
    ("scaling", "theirs", "message"),
    [
        ({"type": "axial"}, {}, "default, linear, dynamic, yarn, longrope, llama3"),
        ({"type": "linear", "factor": 2.0, "shift": 1}, {}, "not supported: shift"),
        ({"type": "linear"}, {}, "needs factor"),
        ({"type": "default", "factor": 2.0}, {}, "supported: none"),
        ({"type": "longrope", **LISTS}, {}, "lacks original_max_position_embeddings"),
        (
            {"type": "longrope", **LISTS, "original_max_position_embeddings": 64},
            {"original_max_position_embeddings": 128},
            "= 64, and config.json has original_max_position_embeddings at the top level = 128",
        ),
        (
            {"type": "longrope", **LISTS, "factor": 8.0},
            {"original_max_position_embeddings": 64},
            "factor = 8.0, and max_position_embeddings / original_max_position_embeddings = 4.0",
        ),
        (
            {"type": "longrope", **LISTS, "short_factor": [1.0]},
            {"original_max_position_embeddings": 64},
            "short_factors must have one number for each of the 4",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(scaling, theirs, message):
    with pytest.raises(ValueError, match=message):
        read(scaling, **theirs)


@pytest.mark.parametrize("dialect", [rope_keys.PHI3, rope_keys.PHIMOE])
def test_phis_know_longrope_only(dialect):
    with pytest.raises(ValueError, match=r"supported: default, longrope\."):
        read({"rope_type": "linear", "factor": 2.0}, dialect)
    with pytest.raises(ValueError, match="shift"):
        read(PHIMOE | {"shift": 1}, dialect)
