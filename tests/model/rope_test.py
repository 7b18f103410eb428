# SPDX-License-Identifier: Apache-2.0
"""Frequencies against published numbers, transformers' code, and the definition of a rotation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from midjax.model import rope


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
    freqs, _ = rope.frequencies(simple(1e4, "pi", 4.0), 64)
    plain, _ = rope.frequencies(simple(1e4, "none"), 64)
    x = jax.random.normal(jax.random.key(0), (1, 3, 2, 64))
    positions = jnp.array([[0, 4, 40]])
    np.testing.assert_allclose(
        rope.apply(x, positions, freqs, 1.0), rope.apply(x, positions // 4, plain, 1.0), atol=1e-5
    )


def test_none_is_the_definition():
    freqs, attention_factor = rope.frequencies(simple(1e4, "none"), 8)
    np.testing.assert_allclose(freqs, [1.0, 0.1, 0.01, 0.001], rtol=1e-7)
    assert (freqs.dtype, attention_factor) == (np.float32, 1.0)


def test_rotation_pairs_a_dimension_with_its_half():
    x = np.arange(1.0, 9.0, dtype=np.float32).reshape(1, 1, 1, 8)
    freqs = np.array([1.0, 0.5, 0.25, 0.125], np.float32)
    found = np.asarray(rope.apply(jnp.asarray(x), jnp.array([[3]]), freqs, 1.5))[0, 0, 0]
    for i in range(4):
        turned = complex(x[0, 0, 0, i], x[0, 0, 0, i + 4]) * 1.5 * np.exp(1j * 3 * freqs[i])
        assert found[i] == pytest.approx(turned.real, abs=1e-5)
        assert found[i + 4] == pytest.approx(turned.imag, abs=1e-5)


def test_scores_depend_on_distance_only():
    freqs, _ = rope.frequencies(simple(1e4, "none"), 16)
    q, k = jax.random.normal(jax.random.key(1), (2, 1, 1, 1, 16))

    def score(at, to):
        turned = (rope.apply(x, jnp.array([[p]]), freqs, 1.0) for x, p in ((q, at), (k, to)))
        return float(jnp.vdot(*turned))

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "pi"}, "needs factor"),
        ({"kind": "none", "factor": 4.0}, "does not use factor"),
        ({"kind": "ntk", "factor": 4.0, "truncate": True}, "does not use truncate"),
        ({"kind": "pi", "factor": 0.5}, "1 or more"),
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


def test_odd_head_dim_and_bad_theta_are_refused():
    with pytest.raises(ValueError, match="even"):
        rope.frequencies(simple(1e4, "none"), 7)
    with pytest.raises(ValueError, match="theta"):
        simple(1.0, "none")


@pytest.mark.parametrize(
    ("config", "theirs"),
    [
        (simple(1e4, "none"), {"rope_type": "default"}),
        (simple(1e4, "pi", 4.0), {"rope_type": "linear", "factor": 4.0}),
        (
            yarn(1e4, 4096, 16.0),
            {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096},
        ),
        (
            yarn(1e6, 4096, 4.0, truncate=False, attention_factor=1.5),
            {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 4096,
                "truncate": False,
                "attention_factor": 1.5,
            },
        ),
        (
            llama3(5e5, 32.0),
            {
                "rope_type": "llama3",
                "factor": 32.0,
                "original_max_position_embeddings": 8192,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
        ),
    ],
)
def test_parity_with_transformers(config, theirs):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama import modeling_llama

    settings = transformers.LlamaConfig(
        hidden_size=128,
        num_attention_heads=1,
        max_position_embeddings=8192,
        rope_parameters={"rope_theta": config.theta, **theirs},
    )
    theirs_made = modeling_llama.LlamaRotaryEmbedding(settings)
    freqs, attention_factor = rope.frequencies(config, 128)
    np.testing.assert_allclose(freqs, theirs_made.inv_freq.numpy(), rtol=1e-6)
    assert attention_factor == pytest.approx(theirs_made.attention_scaling, rel=1e-7)


def test_ntk_agrees_with_transformers_dynamic_at_its_length():
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers import modeling_rope_utils

    # Their base is theta * (f l / L - (f - 1))^(d/(d-2)); at l = 2 L and f = 3 the bracket is 4.
    settings = transformers.LlamaConfig(
        hidden_size=128,
        num_attention_heads=1,
        max_position_embeddings=2048,
        rope_parameters={"rope_theta": 1e4, "rope_type": "dynamic", "factor": 3.0},
    )
    make = modeling_rope_utils.ROPE_INIT_FUNCTIONS["dynamic"]
    want, _ = make(settings, device=None, seq_len=4096)
    freqs, _ = rope.frequencies(simple(1e4, "ntk", 4.0), 128)
    np.testing.assert_allclose(freqs, want.numpy(), rtol=2e-6)


def test_frequencies_do_not_use_the_papers_ramp():
    """The paper's ramp, linear in the turns, would give these at 24 and 32: checkpoints differ."""
    freqs, _ = rope.frequencies(yarn(1e4, 4096, 16), 128)
    turns = 4096 * 1e4 ** (-np.array([24, 32]) / 64) / (2 * math.pi)
    ramp = np.clip((turns - 1) / 31, 0, 1)
    paper = 1e4 ** (-np.array([24, 32]) / 64) * ((1 - ramp) / 16 + ramp)
    np.testing.assert_allclose(paper, [2.0734766e-2, 2.2940483e-3], rtol=1e-6)
    assert (np.abs(freqs[[24, 32]] / paper - 1) > 0.3).all()
