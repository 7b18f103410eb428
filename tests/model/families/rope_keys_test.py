# SPDX-License-Identifier: Apache-2.0
"""Keys of rotary embeddings: what transformers 4 and 5 would read is what we compute."""

import dataclasses
import json
import math

import numpy as np
import pytest
import tiny_model

from midjax.model import rope
from midjax.model.families import rope_keys

H, ORIGINAL, CONTEXT = 32, 64, 256
LENGTHS = (10, 63, 64, 65, 300)


def make(kind, theta=1e4, rotary_dims=None, **fields):
    scaling = rope.RopeScaling(kind=kind, **fields)
    return rope.Rope(theta=theta, scaling=scaling, rotary_dims=rotary_dims)


def longrope(pairs, theta=1e4, rotary_dims=None, factor=8.0, attention_factor=None):
    return make(
        "longrope",
        theta,
        rotary_dims,
        factor=factor,
        original_context_tokens=ORIGINAL,
        short_factors=tuple(1 + i / 7 for i in range(pairs)),
        long_factors=tuple(1.5 + i for i in range(pairs)),
        attention_factor=attention_factor,
    )


def yarn(**fields):
    given = {
        "factor": 4.0, "original_context_tokens": ORIGINAL, "beta_fast": 32.0, "beta_slow": 1.0,
        "truncate": True,
    }  # fmt: skip
    return make("yarn", **(given | fields))


BY_PARTS = make(
    "ntk_by_parts",
    factor=4.0,
    original_context_tokens=ORIGINAL,
    beta_fast=32.0,
    beta_slow=1.0,
)
DYNAMIC = make("dynamic_ntk", factor=2.0, original_context_tokens=ORIGINAL)
ROPES = {
    "none": make("none", 5e5),
    "pi": tiny_model.PI,
    "ntk": tiny_model.NTK,
    "dynamic": DYNAMIC,
    "by parts": BY_PARTS,
    "yarn": yarn(),
    "yarn, odd": yarn(factor=2.3, truncate=False, attention_factor=1.1, beta_fast=16.0),
    "longrope": longrope(16),
    "longrope, odd": longrope(16, factor=2.3),
    "longrope, given": longrope(16, attention_factor=1.3),
    "llama3": tiny_model.LLAMA3,
}
PARTIAL = {
    "none": make("none", rotary_dims=24),
    "pi": make("pi", rotary_dims=24, factor=4.0),
    "ntk": make("ntk", rotary_dims=24, factor=4.0),
    "by parts": dataclasses.replace(BY_PARTS, rotary_dims=24),
    "longrope": longrope(12, rotary_dims=24),
}
# What each family's keys can hold.
PHI3 = {"full " + name: ROPES[name] for name in ("none", "pi", "ntk", "by parts", "longrope")}
PHI3 |= PARTIAL
PHIMOE = {name: one for name, one in ROPES.items() if name != "dynamic"}
FLAT = [
    *(("llama", rope_keys.PLAIN, name, one) for name, one in ROPES.items()),
    *(("phi3", rope_keys.PHI3, name, one) for name, one in PHI3.items()),
    *(("phimoe", rope_keys.PHIMOE, name, one) for name, one in PHIMOE.items()),
]
FLAT_IDS = [f"{family}, {name}" for family, _, name, _ in FLAT]
WINDOWS = {
    "1e4": make("none"),
    "5e5": make("none", 5e5),
    "ntk": tiny_model.NTK,
}
PAIRS = [
    (family, dialect, name, window)
    for family, dialect in (("gemma3_text", rope_keys.GEMMA3), ("olmo3", rope_keys.OLMO3))
    for name in ROPES
    for window in WINDOWS
    # OLMo 3 has one theta for both: see what is refused.
    if (family, name) != ("olmo3", "dynamic") or window == "1e4"
]
PAIR_IDS = [f"{family}, {name}, {window}" for family, _, name, window in PAIRS]


def as_json(config):
    return json.loads(json.dumps(config))


def same_numbers(one, other):
    """Equal frequencies at every length, and attention factors to the last digits.

    Another kind rounds elsewhere: two roundings to float32, of 6e-8 each, on either side.
    """
    rounding = 0 if one == other else 4 * 2.0**-24
    for length in LENGTHS:
        mine, yours = rope.frequencies(one, H, length), rope.frequencies(other, H, length)
        np.testing.assert_allclose(mine[0], yours[0], rtol=rounding, atol=0)
        assert mine[1] == pytest.approx(yours[1], rel=1e-12)


def only_four(written):
    return {key: x for key, x in written.items() if key != "rope_parameters"}


def only_five(written):
    old = ("rope_theta", "rope_scaling", "rope_local_base_freq")
    return {key: x for key, x in written.items() if key not in old}


# ---- without transformers ----


@pytest.mark.parametrize(("family", "dialect", "name", "config"), FLAT, ids=FLAT_IDS)
def test_round_trip_by_the_keys_of_each_version(family, dialect, name, config):
    written = as_json(rope_keys.written(config, H, CONTEXT, dialect))
    for keys in (written, only_four(written), only_five(written)):
        back = rope_keys.from_hf(keys, H, dialect)
        same_numbers(back, config)
        assert as_json(rope_keys.written(back, H, CONTEXT, dialect)) == written
    renamed = ("ntk", "by parts", "longrope, odd")
    if family == "llama" and name not in renamed:
        assert back == config


def test_what_is_written():
    assert rope_keys.to_hf(make("none", 5e5), H) == (5e5, None)
    assert rope_keys.to_hf(tiny_model.PI, H) == (1e4, {"rope_type": "linear", "factor": 4.0})
    assert rope_keys.to_hf(tiny_model.NTK, H) == (1e4 * 4 ** (32 / 30), None)
    by_parts = {
        "rope_type": "llama3",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "low_freq_factor": 1.0,
        "high_freq_factor": 32.0,
    }
    assert rope_keys.to_hf(BY_PARTS, H) == (1e4, by_parts)
    written = rope_keys.written(BY_PARTS, H, CONTEXT)
    assert written["rope_parameters"] == {"rope_theta": 1e4, **by_parts}
    assert written["max_position_embeddings"] == CONTEXT
    assert "rope_theta" not in written["rope_scaling"]  # version 4 warns about keys it has not


def test_lengths_decide_where_the_kind_has_no_other_key():
    # dynamic: the length at which it begins to stretch.
    assert rope_keys.to_hf(DYNAMIC, H) == (1e4, {"rope_type": "dynamic", "factor": 2.0})
    assert rope_keys.written(DYNAMIC, H, CONTEXT)["max_position_embeddings"] == ORIGINAL
    # yarn: releases of version 4 compute the factor from lengths.
    assert rope_keys.written(yarn(), H, 192)["max_position_embeddings"] == 4 * ORIGINAL
    # longrope: version 4 reads these two, from the top level, and no factor.
    for dialect in (rope_keys.PLAIN, rope_keys.PHI3):
        written = rope_keys.written(longrope(16), H, CONTEXT, dialect)
        assert written["original_max_position_embeddings"] == ORIGINAL
        assert written["max_position_embeddings"] == 8 * ORIGINAL


def test_version_4_takes_no_more_than_three_keys_of_phi3():
    written = rope_keys.written(longrope(12, rotary_dims=24), H, CONTEXT, rope_keys.PHI3)
    assert set(written["rope_scaling"]) == {"type", "short_factor", "long_factor"}
    assert written["rope_scaling"]["type"] == "longrope"
    assert written["partial_rotary_factor"] == 0.75
    assert written["rope_parameters"]["partial_rotary_factor"] == 0.75


@pytest.mark.parametrize("head_dim", [80, 96, 128, 200])
def test_every_share_of_a_head_comes_back(head_dim):
    """Theirs is int(head_dim * factor), which rounds down."""
    for dims in range(4, head_dim + 1, 2):
        written = rope_keys.written(make("none", rotary_dims=dims), head_dim, 64, rope_keys.PHI3)
        back = rope_keys.from_hf(as_json(written), head_dim, rope_keys.PHI3)
        assert rope.turned_dims(back, head_dim) == dims


@pytest.mark.parametrize(("family", "dialect", "name", "window"), PAIRS, ids=PAIR_IDS)
def test_pairs_come_back(family, dialect, name, window):
    full, window = ROPES[name], WINDOWS[window]
    written = as_json(rope_keys.pair_written(full, window, H, CONTEXT, dialect))
    for keys in (written, only_four(written), only_five(written)):
        back = rope_keys.pair_from_hf(keys, H, dialect)
        same_numbers(back[0], full)
        same_numbers(back[1] or back[0], window)


def test_a_pair_of_one_is_one():
    config = make("none", 5e5)
    for window in (None, config):
        written = rope_keys.pair_written(config, window, H, CONTEXT, rope_keys.OLMO3)
        assert rope_keys.pair_from_hf(written, H, rope_keys.OLMO3) == (config, None)


def test_real_pairs():
    """Gemma 3 4B and OLMo 3 7B, in the keys of transformers 4."""
    gemma = {
        "max_position_embeddings": 131072,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    }
    found = rope_keys.pair_from_hf(gemma, 256, rope_keys.GEMMA3)
    assert found == (make("pi", 1e6, factor=8.0), make("none", 1e4))
    bare = rope_keys.pair_from_hf({}, 256, rope_keys.GEMMA3)
    assert bare == (make("none", 1e6), make("none", 1e4))
    yarn_of_olmo = {
        "attention_factor": 1.2079441541679836,
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "yarn",
    }
    olmo = {
        "max_position_embeddings": 65536,
        "rope_theta": 500000,
        "rope_scaling": yarn_of_olmo,
    }
    full, window = rope_keys.pair_from_hf(olmo, 128, rope_keys.OLMO3)
    assert window == make("none", 5e5)
    assert full.scaling.attention_factor == pytest.approx(0.1 * math.log(8) + 1)
    nested = {
        "max_position_embeddings": 65536,
        "rope_parameters": {
            "full_attention": {"rope_theta": 500000, **yarn_of_olmo},
            "sliding_attention": {"rope_theta": 500000, "rope_type": "default"},
        },
    }
    assert rope_keys.pair_from_hf(nested, 128, rope_keys.OLMO3) == (full, window)


def test_old_and_bare_configs_are_read():
    assert rope_keys.from_hf({}, H) == tiny_model.NONE
    old = {"rope_theta": 10000, "rope_scaling": {"type": "linear", "factor": 4}}
    assert rope_keys.from_hf(old, H) == tiny_model.PI
    assert rope_keys.from_hf({"rope_scaling": None, "rope_theta": 5e5}, H).theta == 5e5
    assert rope_keys.from_hf({"rope_parameters": {"rope_theta": 5e5}}, H).theta == 5e5
    assert rope_keys.from_hf({}, H, rope_keys.Dialect(default_theta=2e6)).theta == 2e6


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            "two different rotary",
        ),
        (
            {"rope_theta": 1e4, "rope_parameters": {"rope_type": "linear", "factor": 2.0}},
            "two different rotary",
        ),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "share one"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "shift": 1}}, "shift"),
    ],
)
def test_contradictions_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        rope_keys.from_hf({"max_position_embeddings": 256} | keys, H)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}, "must have the parts"),
        (
            {
                "rope_local_base_freq": 1e4,
                "rope_parameters": {"sliding_attention": {"rope_theta": 2e4}},
            },
            "two different rotary",
        ),
        (
            {
                "rope_theta": 1e6,
                "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}},
            },
            "two different rotary",
        ),
    ],
)
def test_contradictions_of_pairs_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        rope_keys.pair_from_hf({"max_position_embeddings": 256} | keys, H, rope_keys.GEMMA3)


def test_what_a_family_cannot_say_is_refused():
    def write(config, dialect):
        return rope_keys.written(config, H, CONTEXT, dialect)

    with pytest.raises(ValueError, match="turns whole heads"):
        write(PARTIAL["pi"], rope_keys.PLAIN)
    for dialect in (rope_keys.PHI3, rope_keys.PHIMOE):
        with pytest.raises(ValueError, match="'dynamic_ntk' has no place"):
            write(DYNAMIC, dialect)
    for config in (yarn(), longrope(16, attention_factor=1.3), longrope(16, factor=2.3)):
        with pytest.raises(ValueError, match="transformers would multiply cos and sin"):
            write(config, rope_keys.PHI3)
    with pytest.raises(ValueError, match="short_factors must have"):
        write(longrope(12), rope_keys.PLAIN)
    for dialect in (rope_keys.GEMMA3, rope_keys.OLMO3):
        with pytest.raises(ValueError, match="never scales the rotary embedding of sliding"):
            rope_keys.pair_written(yarn(), None, H, CONTEXT, dialect)
    with pytest.raises(ValueError, match="'dynamic_ntk' has no place"):
        rope_keys.pair_written(DYNAMIC, make("none", 5e5), H, CONTEXT, rope_keys.OLMO3)


# ---- transformers 5 computes what we do ----

MODULES = {
    "llama": ("llama", "LlamaRotaryEmbedding"),
    "phi3": ("phi3", "Phi3RotaryEmbedding"),
    "phimoe": ("phimoe", "PhimoeRotaryEmbedding"),
    "gemma3_text": ("gemma3", "Gemma3RotaryEmbedding"),
    "olmo3": ("olmo3", "Olmo3RotaryEmbedding"),
}
SHAPE = {
    "vocab_size": 96, "hidden_size": 2 * H, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 48, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip


LAYERS = (rope_keys.WINDOW, rope_keys.FULL)


def check_against_theirs(family, keys, config, layer_type=None, lengths=LENGTHS):
    """Frequencies and attention factors of a config.json, as their module uses them."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    name, module = MODULES[family]
    modeling = __import__(f"transformers.models.{name}.modeling_{name}", fromlist=[module])
    layer_types = {"layer_types": list(LAYERS)} if layer_type else {}
    settings = transformers.CONFIG_MAPPING[family].from_dict(
        as_json(SHAPE | {"head_dim": H} | layer_types | keys)
    )
    # A round trip through their own file.
    settings = transformers.CONFIG_MAPPING[family].from_dict(json.loads(settings.to_json_string()))
    given = (layer_type,) if layer_type else ()
    for length in lengths:
        made = getattr(modeling, module)(settings)  # new each time: theirs remembers lengths
        cos, sin = made(torch.zeros(1), torch.arange(length)[None], *given)
        freqs, factor = rope.frequencies(config, H, length)
        cos, sin = (x[0, 1, : len(freqs)].double().numpy() for x in (cos, sin))
        np.testing.assert_allclose(np.arctan2(sin, cos), freqs, rtol=1e-6)
        np.testing.assert_allclose(np.hypot(sin, cos), factor, rtol=1e-6)


@pytest.mark.parametrize(("family", "dialect", "name", "config"), FLAT, ids=FLAT_IDS)
def test_transformers_computes_our_frequencies(family, dialect, name, config):
    lengths = LENGTHS
    if family == "phimoe" and config.scaling.kind == "longrope":
        lengths = tuple(n for n in LENGTHS if n <= ORIGINAL)  # see rope_keys.PHIMOE
    written = rope_keys.written(config, H, CONTEXT, dialect)
    for keys in (written, only_four(written), only_five(written)):
        check_against_theirs(family, keys, config, lengths=lengths)


@pytest.mark.parametrize(("family", "dialect", "name", "window"), PAIRS, ids=PAIR_IDS)
def test_transformers_computes_our_pairs(family, dialect, name, window):
    full, window = ROPES[name], WINDOWS[window]
    written = rope_keys.pair_written(full, window, H, CONTEXT, dialect)
    for keys in (written, only_five(written)):
        check_against_theirs(family, keys, full, rope_keys.FULL)
        check_against_theirs(family, keys, window, rope_keys.WINDOW, lengths=(10,))


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma3_text", "olmo3"])
def test_their_own_files_are_read(family):
    """What transformers 5 makes of our keys and saves, with what it adds."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    make_config = transformers.CONFIG_MAPPING[family].from_dict
    layers = {"layer_types": list(LAYERS)}
    if family in ("llama", "phi3"):
        dialect = rope_keys.PHI3 if family == "phi3" else rope_keys.PLAIN
        config = longrope(12, rotary_dims=24) if family == "phi3" else longrope(16)
        written = rope_keys.written(config, H, CONTEXT, dialect)
        saved = make_config(as_json(SHAPE | written)).to_dict()
        assert rope_keys.from_hf(as_json(saved), H, dialect) == config
    else:
        dialect = {"gemma3_text": rope_keys.GEMMA3, "olmo3": rope_keys.OLMO3}[family]
        pair = yarn(), make("none")
        written = rope_keys.pair_written(*pair, H, CONTEXT, dialect)
        saved = make_config(as_json(SHAPE | layers | written)).to_dict()
        assert rope_keys.pair_from_hf(as_json(saved), H, dialect) == pair
