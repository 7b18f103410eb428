# SPDX-License-Identifier: Apache-2.0
"""Frequencies against published numbers, transformers' code, and the definition of a rotation."""

import dataclasses
import math
import sys

import devices
import jax
import jax.numpy as jnp
import numpy as np
import packed_rows
import pytest

from midjax.model import documents, rope, rotation, sharding

ORIGINAL = 64  # the original length of the small rotary embeddings below


def yarn(theta, original, factor, truncate=True, attention_factor=None):
    return rope.Rope(
        theta=theta,
        scaling=rope.RopeScaling(
            kind="yarn",
            factor=float(factor),
            original_context_tokens=original,
            beta_fast=32.0,
            beta_slow=1.0,
            truncate=truncate,
            attention_factor=attention_factor,
        ),
    )


def llama3(theta, factor, original=8192):
    scaling = rope.RopeScaling(
        kind="llama3",
        factor=factor,
        original_context_tokens=original,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    )
    return rope.Rope(theta=theta, scaling=scaling)


def simple(theta, kind, factor=None):
    return rope.Rope(theta=theta, scaling=rope.RopeScaling(kind=kind, factor=factor))


def dynamic(theta, factor, original=ORIGINAL):
    scaling = rope.RopeScaling(kind="dynamic_ntk", factor=factor, original_context_tokens=original)
    return rope.Rope(theta=theta, scaling=scaling)


def by_parts(theta, factor, original):
    scaling = rope.RopeScaling(
        kind="ntk_by_parts",
        factor=factor,
        original_context_tokens=original,
        beta_fast=32.0,
        beta_slow=1.0,
    )
    return rope.Rope(theta=theta, scaling=scaling)


def longrope(theta, factor, pairs, original=ORIGINAL, attention_factor=None, rotary_dims=None):
    scaling = rope.RopeScaling(
        kind="longrope",
        factor=factor,
        original_context_tokens=original,
        short_factors=tuple(1 + i / 10 for i in range(pairs)),
        long_factors=tuple(1.5 + i for i in range(pairs)),
        attention_factor=attention_factor,
    )
    return rope.Rope(theta=theta, scaling=scaling, rotary_dims=rotary_dims)


def turned(x, positions, config, head_dim, lengths=None):
    return rotation.rotate(x, *rope.angles(config, head_dim, positions, lengths))


def frequencies_of(cos_sin):
    """Angles per token from cos and sin of the tokens at position 1, [.., R] in float64."""
    cos, sin = (np.asarray(x, np.float64) for x in cos_sin)
    return np.arctan2(sin, cos)


# theta, head_dim, original length, factor -> ramp in dimensions (raw where known), attention
# factor, some frequencies. Computed from the released YaRN code for these checkpoints' settings.
YARN = [
    (1e4, 128, 4096, 16, (20, 46), (20.9445, 45.0269), 1.277259,
     {16: 0.1, 24: 2.70617992e-2, 32: 5.67307692e-3}),
    (5e5, 128, 8192, 8, (18, 35), (18.0811, 34.9841), 1.207944,  # Olmo 3
     {24: 5.04051827e-3, 32: 3.95147907e-4}),
    (1e4, 64, 4096, 40, (10, 23), None, 1.368888, {}),  # DeepSeek
    (1e6, 128, 32768, 4, (23, 40), None, 1.138629, {}),  # Qwen
]  # fmt: skip


@pytest.mark.parametrize(("theta", "dim", "original", "factor", "ends", "raw", "by", "some"), YARN)
def test_yarn_golden(theta, dim, original, factor, ends, raw, by, some):
    config = yarn(theta, original, factor)
    freqs, attention_factor = rope.frequencies(config, dim)
    assert rope.correction_range(config, dim) == ends
    assert attention_factor == pytest.approx(by, abs=1e-6)
    for index, value in some.items():
        assert freqs[index] == pytest.approx(value, rel=1e-6)
    if raw:
        found = rope.correction_range(yarn(theta, original, factor, truncate=False), dim)
        assert found == pytest.approx(raw, abs=5e-5)
    # Outside the ramp: untouched, and divided by the factor.
    plain, _ = rope.frequencies(simple(theta, "none"), dim)
    np.testing.assert_array_equal(freqs[: ends[0] + 1], plain[: ends[0] + 1])
    np.testing.assert_allclose(freqs[ends[1] :], plain[ends[1] :] / factor, rtol=2e-7)


def test_yarn_attention_factor_can_be_given():
    assert rope.frequencies(yarn(1e4, 4096, 40, attention_factor=1.0), 64)[1] == 1.0


def test_yarn_of_factor_one_changes_nothing():
    freqs, attention_factor = rope.frequencies(yarn(1e4, 4096, 1.0), 128)
    np.testing.assert_allclose(freqs, rope.frequencies(simple(1e4, "none"), 128)[0], rtol=2e-7)
    assert attention_factor == 1.0


def test_llama3_golden():
    freqs, attention_factor = rope.frequencies(llama3(5e5, 8.0), 128)
    plain, _ = rope.frequencies(simple(5e5, "none"), 128)
    same, divided = freqs == plain, freqs == (plain / 8).astype(np.float32)
    assert (same.sum(), divided.sum(), (~same & ~divided).sum()) == (29, 29, 6)
    golden = [3.211446e-3, 2.166571e-3, 1.371894e-3, 8.567514e-4,
              5.248462e-4, 3.126938e-4, 1.785078e-4, 9.556212e-5]  # fmt: skip
    np.testing.assert_allclose(freqs[28:36], golden, rtol=1e-6)
    assert attention_factor == 1.0


@pytest.mark.parametrize(("factor", "theta"), [(4.0, 40889.94), (8.0, 82684.62)])
def test_ntk_golden(factor, theta):
    assert rope.ntk_theta(1e4, factor, 128) == pytest.approx(theta, rel=1e-6)
    plain, _ = rope.frequencies(simple(1e4, "none"), 128)
    freqs, attention_factor = rope.frequencies(simple(1e4, "ntk", factor), 128)
    assert freqs[0] == plain[0] == 1.0
    assert freqs[-1] * factor == pytest.approx(plain[-1], rel=1e-6)
    assert attention_factor == 1.0


def test_pi_is_a_division_of_positions():
    x = jax.random.normal(jax.random.key(0), (1, 3, 2, 64))
    positions = jnp.array([[0, 4, 40]])
    np.testing.assert_allclose(
        turned(x, positions, simple(1e4, "pi", 4.0), 64),
        turned(x, positions // 4, simple(1e4, "none"), 64),
        atol=1e-5,
    )


def test_none_is_the_definition():
    freqs, attention_factor = rope.frequencies(simple(1e4, "none"), 8)
    np.testing.assert_allclose(freqs, [1.0, 0.1, 0.01, 0.001], rtol=1e-7)
    assert (freqs.dtype, attention_factor) == (np.float32, 1.0)


def test_ntk_by_parts_is_the_papers_ramp():
    """Linear in the turns; YaRN's code, linear in the index, has other numbers (see YARN)."""
    freqs, attention_factor = rope.frequencies(by_parts(1e4, 16.0, 4096), 128)
    np.testing.assert_allclose(freqs[[24, 32]], [2.0734766e-2, 2.2940483e-3], rtol=1e-6)
    plain, _ = rope.frequencies(simple(1e4, "none"), 128)
    turns = 4096 * plain / (2 * math.pi)
    np.testing.assert_array_equal(freqs[turns > 32], plain[turns > 32])
    np.testing.assert_array_equal(freqs[turns < 1], plain[turns < 1] / np.float32(16))
    assert attention_factor == 1.0


@pytest.mark.parametrize("length", [None, 1, 63, 64])
def test_dynamic_changes_nothing_up_to_the_original_length(length):
    freqs, attention_factor = rope.frequencies(dynamic(1e4, 4.0), 32, length)
    np.testing.assert_array_equal(freqs, rope.frequencies(simple(1e4, "none"), 32)[0])
    assert attention_factor == 1.0


def test_dynamic_is_ntk_that_grows_with_the_length():
    # f l / L - (f - 1) with f = 3: 4 at twice the length, 7 at three times.
    for length, factor in ((128, 4.0), (192, 7.0)):
        freqs, _ = rope.frequencies(dynamic(1e4, 3.0), 32, length)
        np.testing.assert_array_equal(freqs, rope.frequencies(simple(1e4, "ntk", factor), 32)[0])


def test_longrope_switches_at_the_original_length():
    config = longrope(1e4, 32.0, 16, original=4096)
    plain = 1e4 ** (-np.arange(16) / 16)
    for length, divisors in (
        (None, config.scaling.short_factors),
        (4096, config.scaling.short_factors),
        (4097, config.scaling.long_factors),
    ):
        freqs, attention_factor = rope.frequencies(config, 32, length)
        np.testing.assert_allclose(freqs, plain / np.array(divisors), rtol=1e-7)
        assert attention_factor == pytest.approx(1.190238, abs=1e-6)  # Phi-3.5: 32 times 4096
    given = longrope(1e4, 32.0, 16, original=4096, attention_factor=1.5)
    assert rope.frequencies(given, 32, 9999)[1] == 1.5
    assert rope.frequencies(longrope(1e4, 1.0, 16), 32)[1] == 1.0


@pytest.mark.parametrize(
    "config",
    [
        simple(5e5, "none"),
        simple(1e4, "pi", 4.0),
        simple(1e4, "ntk", 4.0),
        dynamic(1e4, 2.0),
        by_parts(1e4, 4.0, 4096),
        yarn(1e4, 4096, 4.0),
        llama3(5e5, 8.0),
        longrope(1e4, 4.0, 48),
    ],
    ids=lambda config: config.scaling.kind,
)
def test_partial_rotary_is_a_smaller_head_and_a_rest(config):
    part = dataclasses.replace(config, rotary_dims=96)
    for length in (None, 100):
        mine, whole = rope.frequencies(part, 128, length), rope.frequencies(config, 96, length)
        np.testing.assert_array_equal(mine[0], whole[0])
        assert mine[1] == whole[1]
    x = jax.random.normal(jax.random.key(0), (1, 5, 2, 128), jnp.bfloat16)
    positions = 10_000 * jnp.arange(5)[None]
    found = turned(x, positions, part, 128, jnp.full((1, 5), 100))
    assert found.dtype == jnp.bfloat16
    want = turned(x[..., :96], positions, config, 96, jnp.full((1, 5), 100))
    np.testing.assert_array_equal(found[..., :96], want)
    np.testing.assert_array_equal(found[..., 96:], x[..., 96:])
    assert (found[:, 1:, :, :96] != x[:, 1:, :, :96]).mean() > 0.9


def test_angles_carry_the_attention_factor():
    config = yarn(1e4, 4096, 40, attention_factor=1.5)
    freqs, _ = rope.frequencies(config, 16)
    cos, sin = rope.angles(config, 16, jnp.array([[0, 7]]), None)
    np.testing.assert_allclose(cos[0, :, 0], 1.5 * np.cos([0 * freqs, 7 * freqs]), atol=1e-6)
    np.testing.assert_allclose(sin[0, :, 0], 1.5 * np.sin([0 * freqs, 7 * freqs]), atol=1e-6)


def test_scores_depend_on_distance_only():
    q, k = jax.random.normal(jax.random.key(1), (2, 1, 1, 1, 16))

    def score(at, to):
        pair = (turned(x, jnp.array([[p]]), simple(1e4, "none"), 16) for x, p in ((q, at), (k, to)))
        return float(jnp.vdot(*pair))

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)


# ---- documents of a row ----


def test_lengths_must_be_given_where_they_are_needed():
    positions = jnp.arange(4)[None]
    for config in (dynamic(1e4, 2.0), longrope(1e4, 2.0, 8)):
        assert rope.needs_lengths(config)
        with pytest.raises(ValueError, match=f"{config.scaling.kind}.*documents.lengths"):
            rope.angles(config, 16, positions, None)
    for config in (simple(1e4, "ntk", 2.0), yarn(1e4, 64, 2.0), by_parts(1e4, 2.0, 64)):
        assert not rope.needs_lengths(config)
        one, other = (rope.angles(config, 16, positions, n) for n in (None, positions + 99))
        np.testing.assert_array_equal(one[0], other[0])


@pytest.mark.parametrize("factor", [1.0, 2.0, 7.3, 32.0])
def test_dynamic_in_the_graph_is_dynamic_in_float64(factor):
    """To 1e-6 relative at every length, up to 2000 times the original one."""
    config = dynamic(1e6, factor, original=100)
    lengths = np.unique(np.r_[1:400, np.geomspace(400, 200_000, 200).astype(int)])
    ones = jnp.ones((1, len(lengths)), jnp.int32)
    angles = jax.jit(rope.angles, static_argnums=(0, 1))
    found = frequencies_of(angles(config, 64, ones, jnp.asarray(lengths)[None]))[0, :, 0]
    want = np.stack([rope.frequencies(config, 64, int(n))[0] for n in lengths])
    np.testing.assert_allclose(found, want, rtol=1e-6)
    # The first hundred are within the original length.
    plain, _ = rope.frequencies(config, 64)
    np.testing.assert_allclose(found[:100], np.tile(plain, (100, 1)), rtol=2e-7)


PACKED = [dynamic(1e4, 2.0), longrope(1e4, 8.0, 16), longrope(5e5, 8.0, 12, rotary_dims=24)]


@pytest.mark.parametrize("config", PACKED, ids=["dynamic", "longrope", "partial longrope"])
def test_packed_documents_are_turned_as_if_alone(config):
    """Lengths under, at and over the original in one row; padding is finite."""
    lengths = [40, 65, 64, 150, 1]
    segments, positions, _ = packed_rows.make(lengths, 6)
    of_token = documents.lengths(jnp.asarray(segments), jnp.asarray(positions))
    cos, sin = rope.angles(config, 32, jnp.asarray(positions), of_token)
    assert np.isfinite(cos).all() and np.isfinite(sin).all()
    begin = 0
    for length in lengths:
        freqs, factor = rope.frequencies(config, 32, length)
        angle = np.arange(length)[:, None] * np.float64(freqs)
        for found, wave in ((cos, np.cos), (sin, np.sin)):
            mine = found[0, begin : begin + length, 0]
            np.testing.assert_allclose(mine, factor * wave(angle), atol=5e-5)
        begin += length


# ---- what is refused ----


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "pi"}, "needs factor"),
        ({"kind": "none", "factor": 4.0}, "does not use factor"),
        ({"kind": "ntk", "factor": 4.0, "truncate": True}, "does not use truncate"),
        ({"kind": "pi", "factor": 0.5}, "factor must be 1 or more"),
        ({"kind": "pi", "factor": math.nan}, "factor must be 1 or more"),
        ({"kind": "dynamic_ntk", "factor": 2.0}, "needs original_context_tokens"),
        (
            {"kind": "dynamic_ntk", "factor": 2.0, "original_context_tokens": 1},
            "original_context_tokens must be 2 or more",
        ),
        ({"kind": "ntk_by_parts", "factor": 2.0, "original_context_tokens": 64}, "needs beta_fast"),
        ({"kind": "longrope", "factor": 2.0, "original_context_tokens": 64}, "needs short_factors"),
        (
            {
                "kind": "longrope",
                "factor": 2.0,
                "original_context_tokens": 64,
                "short_factors": (1.0, 0.0),
                "long_factors": (1.0, 2.0),
            },
            "short_factors must be a tuple of finite numbers over 0",
        ),
        ({"kind": "yarn", "factor": 4.0}, "needs original_context_tokens"),
        (
            {
                "kind": "llama3",
                "factor": 8.0,
                "original_context_tokens": 8192,
                "low_freq_factor": 4.0,
                "high_freq_factor": 1.0,
            },
            "under high_freq_factor",
        ),
    ],
)
def test_bad_scaling_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        rope.RopeScaling(**fields)


def test_unknown_kind_is_refused():
    # Under the tests' type checker the annotation speaks first.
    with pytest.raises((ValueError, TypeError), match="yarm"):
        rope.RopeScaling(kind="yarm")


@pytest.mark.parametrize(
    ("config", "head_dim", "message"),
    [
        (simple(1e4, "none"), 7, "head_dim must be even"),
        (simple(1e4, "none"), 2, "at least 4"),
        (
            rope.Rope(theta=1e4, scaling=simple(1e4, "none").scaling, rotary_dims=7),
            8,
            "rotary_dims",
        ),
        (rope.Rope(theta=1e4, scaling=simple(1e4, "none").scaling, rotary_dims=16), 8, "at most"),
        (longrope(1e4, 2.0, 8), 32, "short_factors must have one number for each of the 16"),
    ],
)
def test_what_does_not_fit_a_head_is_refused(config, head_dim, message):
    with pytest.raises(ValueError, match=message):
        rope.check_head_dim(config, head_dim)
    with pytest.raises(ValueError, match=message):
        rope.frequencies(config, head_dim)


def test_a_bad_theta_is_refused():
    with pytest.raises(ValueError, match="theta"):
        simple(1.0, "none")


# ---- transformers ----


def theirs_of(config):
    """A rotary embedding in their names, written out: the product's writer has its own test."""
    scaling = config.scaling
    names = {
        "pi": "linear", "dynamic_ntk": "dynamic", "yarn": "yarn", "longrope": "longrope",
        "llama3": "llama3",
    }  # fmt: skip
    fields = {
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.original_context_tokens,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "attention_factor": scaling.attention_factor,
        "truncate": scaling.truncate,
        "short_factor": list(scaling.short_factors or ()) or None,
        "long_factor": list(scaling.long_factors or ()) or None,
    }
    if scaling.kind == "dynamic_ntk":
        del fields["original_max_position_embeddings"]
    found = {key: value for key, value in fields.items() if value is not None}
    return {"rope_type": names.get(scaling.kind, "default"), "rope_theta": config.theta, **found}


def their_config(config, head_dim, context_tokens):
    transformers = pytest.importorskip("transformers")
    parameters = theirs_of(config)
    kind = "LlamaConfig"
    if config.rotary_dims:
        kind = "Phi3Config"
        parameters["partial_rotary_factor"] = config.rotary_dims / head_dim
    return getattr(transformers, kind)(
        hidden_size=head_dim,
        num_attention_heads=1,
        max_position_embeddings=context_tokens,
        original_max_position_embeddings=config.scaling.original_context_tokens or context_tokens,
        rope_parameters=parameters,
    )


def their_module(config, head_dim, context_tokens):
    from transformers.models.llama import modeling_llama
    from transformers.models.phi3 import modeling_phi3

    settings = their_config(config, head_dim, context_tokens)
    if config.rotary_dims:
        return modeling_phi3.Phi3RotaryEmbedding(settings)
    return modeling_llama.LlamaRotaryEmbedding(settings)


# Rotary embeddings, and what transformers takes as the length of the model.
PARITY = {
    "none": (simple(1e4, "none"), 8192),
    "abf": (simple(5e5, "none"), 8192),
    "pi": (simple(1e4, "pi", 4.0), 8192),
    "dynamic": (dynamic(1e4, 4.0, 4096), 4096),
    "dynamic, theta 1e6": (dynamic(1e6, 3.0, 2048), 2048),
    "yarn": (yarn(1e4, 4096, 16.0), 65536),
    "yarn, given": (yarn(1e6, 4096, 4.0, truncate=False, attention_factor=1.5), 16384),
    "yarn, past the last pair": (yarn(100.0, 131072, 8.0), 1048576),
    "llama3": (llama3(5e5, 32.0), 131072),
    "longrope": (longrope(1e4, 32.0, 64, original=4096), 131072),
    "longrope, given": (longrope(1e4, 8.0, 64, original=4096, attention_factor=1.2), 32768),
    "longrope, partial": (longrope(1e4, 32.0, 48, original=4096, rotary_dims=96), 131072),
}


@pytest.mark.parametrize("name", sorted(PARITY))
@pytest.mark.parametrize("length", [100, 4095, 4096, 4097, 20_000])
def test_parity_with_their_functions(name, length):
    """Frequencies and attention factors under, at and over the original length."""
    pytest.importorskip("torch")
    from transformers import modeling_rope_utils

    config, context_tokens = PARITY[name]
    settings = their_config(config, 128, context_tokens)
    kind = settings.rope_parameters["rope_type"]
    if kind == "default":
        want, factor = their_module(config, 128, context_tokens).inv_freq, 1.0
    else:
        make = modeling_rope_utils.ROPE_INIT_FUNCTIONS[kind]
        want, factor = make(settings, device=None, seq_len=length)
    freqs, attention_factor = rope.frequencies(config, 128, length)
    np.testing.assert_allclose(freqs, want.numpy(), rtol=1e-6)
    assert attention_factor == pytest.approx(factor, rel=1e-6)


@pytest.mark.parametrize("name", ["dynamic", "llama3", "longrope", "longrope, partial", "yarn"])
def test_packed_rows_equal_their_modules_on_each_document(name):
    torch = pytest.importorskip("torch")
    config, context_tokens = PARITY[name]
    if rope.needs_lengths(config):  # the same with a short original length
        context_tokens = context_tokens // 4096 * ORIGINAL
        scaling = dataclasses.replace(config.scaling, original_context_tokens=ORIGINAL)
        config = dataclasses.replace(config, scaling=scaling)
    lengths = [63, 300, 64, 65, 9]
    segments, positions, _ = packed_rows.make(lengths, 11)
    of_token = None
    if rope.needs_lengths(config):
        of_token = documents.lengths(jnp.asarray(segments), jnp.asarray(positions))
    mine = rope.angles(config, 128, jnp.asarray(positions), of_token)
    begin = 0
    for length in lengths:
        module = their_module(config, 128, context_tokens)  # theirs remembers lengths
        theirs = module(torch.zeros(1), torch.arange(length)[None])
        freqs, factor = rope.frequencies(config, 128, length)
        np.testing.assert_allclose(freqs, module.inv_freq.numpy(), rtol=1e-6)
        assert factor == pytest.approx(module.attention_scaling, rel=1e-6)
        for found, want in zip(mine, theirs, strict=True):
            # A relative error of 1e-7 in a frequency is one of 3e-5 in the angle of token 300.
            np.testing.assert_allclose(
                found[0, begin : begin + length, 0], want[0, :, : len(freqs)].numpy(), atol=1e-4
            )
        begin += length


def test_rotation_equals_theirs():
    torch = pytest.importorskip("torch")
    from transformers.models.phi3 import modeling_phi3

    config, context_tokens = PARITY["longrope, partial"]
    x = np.random.default_rng(0).standard_normal((2, 7, 3, 128)).astype(np.float32)
    positions = np.tile(np.arange(7, dtype=np.int32), (2, 1))
    cos, sin = their_module(config, 128, context_tokens)(torch.zeros(1), torch.tensor(positions))
    query = torch.tensor(x).transpose(1, 2)
    want, _ = modeling_phi3.apply_rotary_pos_emb(query, query, cos, sin)
    found = turned(jnp.asarray(x), jnp.asarray(positions), config, 128, jnp.full((2, 7), 7))
    np.testing.assert_allclose(found, want.transpose(1, 2).numpy(), atol=1e-5)


# ---- a mesh ----


@pytest.fixture(scope="module")
def four_devices(tmp_path_factory):
    """What `main` made on four emulated devices."""
    out = tmp_path_factory.mktemp("mesh") / "out.npz"
    devices.run_script(__file__, out)
    return dict(np.load(out))


def mesh_rows():
    rows = [
        packed_rows.make([40, 65, 64, 80], 7),
        packed_rows.make([256], 0),
        packed_rows.make([1, 254], 1),
        packed_rows.make([90], 166),
    ]
    return [np.concatenate(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("mesh", ["4x1", "2x2", "1x4"])
def test_a_mesh_changes_no_number(mesh, four_devices):
    """Rows split over data, and their length over context: no message for the first."""
    _, positions, lengths = (jnp.asarray(x) for x in mesh_rows())
    np.testing.assert_array_equal(four_devices[f"{mesh} lengths"], lengths)
    for i, config in enumerate(PACKED):
        cos, _ = rope.angles(config, 32, positions, lengths)
        np.testing.assert_allclose(four_devices[f"{mesh} cos {i}"], cos, atol=1e-5)
    assert four_devices["4x1 messages"] == 0


def main(out):
    segments, positions, _ = mesh_rows()
    found = {}
    for data, context in ((4, 1), (2, 2), (1, 4)):
        mesh = sharding.make(sharding.Mesh(data=data, fsdp=1, tensor=1, context=context))
        split = jax.NamedSharding(mesh, jax.P("data", "context"))

        def both(segments, positions):
            lengths = documents.lengths(segments, positions)
            return lengths, [rope.angles(config, 32, positions, lengths)[0] for config in PACKED]

        with jax.set_mesh(mesh):
            rows = jax.device_put((segments, positions), split)
            compiled = jax.jit(both).lower(*rows).compile()
            lengths, cos = compiled(*rows)
        text = compiled.as_text()
        messages = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
        name = f"{data}x{context}"
        found[f"{name} messages"] = np.array(sum(text.count(word) for word in messages))
        found[f"{name} lengths"] = np.asarray(lengths)
        found |= {f"{name} cos {i}": np.asarray(x) for i, x in enumerate(cos)}
    np.savez(out, **found)


if __name__ == "__main__":
    main(sys.argv[1])
