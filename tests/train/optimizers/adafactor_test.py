# SPDX-License-Identifier: Apache-2.0
"""Adafactor against the paper's algorithms in NumPy and against transformers' optimizer."""

import numpy as np
import pytest
import tiny_optimizer as tiny

LR = 0.02
KINDS = {
    "t5": {},
    "palm": {"factored": False, "b1": 0.9},
    "plain": {"clip_rms": None, "scale_by_parameter": False},
}


def rms(x):
    return np.sqrt(np.mean(x**2))


def paper(p, gradients, decay, *, factored, clip_rms=1.0, scale_by_parameter=True, b1=None):
    """Algorithms 4 (matrices) and 5 (vectors) of 1804.04235, with decoupled decay."""
    row = column = full = momentum = 0.0
    for t, g in enumerate(gradients, 1):
        b2 = 1 - t**-0.8
        squares = g**2 + 1e-30
        if factored and p.ndim == 2:
            row = b2 * row + (1 - b2) * squares.sum(1)
            column = b2 * column + (1 - b2) * squares.sum(0)
            second = np.outer(row, column) / row.sum()
        else:
            full = second = b2 * full + (1 - b2) * squares
        u = g / np.sqrt(second)
        if clip_rms is not None:
            u = u / max(1, rms(u) / clip_rms)
        if scale_by_parameter:
            u = u * max(1e-3, rms(p))
        if b1 is not None:
            u = momentum = b1 * momentum + (1 - b1) * u
        p = p - LR * (u + decay * p)
    return p


@pytest.mark.parametrize("kind", KINDS)
def test_20_updates_against_the_paper(kind):
    found, state = tiny.trained(tiny.adafactor_config(**KINDS[kind]), LR)
    gradients = [tiny.clipped(g) for g in tiny.gradients(20)]
    options = {"factored": True} | KINDS[kind]
    for name, params in tiny.arrays(0).items():
        decay = 0.1 * (name in tiny.DECAYING)
        parts = [tiny.parts_of(name, g[name]) for g in gradients]
        expected = [
            paper(p, [g[i] for g in parts], decay, **options)
            for i, p in enumerate(tiny.parts_of(name, params))
        ]
        for ours, theirs in zip(tiny.parts_of(name, found[name]), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=5e-6, err_msg=name)
    assert int(state["adam_count"]) == 20


def test_20_updates_against_transformers():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers.optimization")
    found, _ = tiny.trained(tiny.adafactor_config(b1=0.9, weight_decay=0.0, clip_norm=None), LR)
    gradients = tiny.gradients(20)
    for name, array in tiny.arrays(0).items():
        params = [torch.nn.Parameter(torch.tensor(p)) for p in tiny.parts_of(name, array)]
        theirs = transformers.Adafactor(params, lr=LR, beta1=0.9, relative_step=False)
        for gradient in gradients:
            for p, g in zip(params, tiny.parts_of(name, gradient[name]), strict=True):
                p.grad = torch.tensor(g)
            theirs.step()
        for p, ours in zip(params, tiny.parts_of(name, found[name]), strict=True):
            np.testing.assert_allclose(ours, p.detach(), rtol=2e-5, atol=5e-6, err_msg=name)


def test_small_matrices_and_vectors_are_not_factored():
    shapes = tiny.SHAPES | {"layers/router": (2, 6, 5)}
    kept = tiny.adafactor_config(min_factored_dim=6).moments(shapes)
    factored = {name for name, of in kept.items() if set(of) == {"nu_row", "nu_col"}}
    assert factored == set(tiny.MATRICES)
    assert all(set(of) == {"nu_full"} for name, of in kept.items() if name not in factored)


@pytest.mark.parametrize(
    "change", [{"b1": 1.0}, {"eps": 0.0}, {"clip_rms": 0.0}, {"min_factored_dim": 0}]
)
def test_bad_numbers(change):
    with pytest.raises(ValueError, match=r"Adafactor\."):
        tiny.adafactor_config(**change)
