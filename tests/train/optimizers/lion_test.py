# SPDX-License-Identifier: Apache-2.0
"""Lion against the paper's program in NumPy."""

import numpy as np
import pytest
import tiny_optimizer as tiny

LR = 0.01


def test_20_updates_against_the_paper():
    """Program 1 of 2302.06675."""
    found, state = tiny.trained(tiny.lion_config(), LR)
    gradients = [tiny.clipped(g) for g in tiny.gradients(20)]
    for name, p in tiny.arrays(0).items():
        m, decay = np.zeros_like(p), 0.1 * (name in tiny.DECAYING)
        for gradient in gradients:
            g = gradient[name]
            p = p - LR * (np.sign(0.9 * m + 0.1 * g) + decay * p)
            m = 0.99 * m + 0.01 * g
        np.testing.assert_allclose(found[name], p, rtol=0, atol=2e-6, err_msg=name)
        kept = tiny.flat(state["moments"]["mu"])[name]
        np.testing.assert_allclose(kept, m, rtol=1e-5, atol=1e-9)
    assert set(state["moments"]) == {"mu"} and int(state["adam_count"]) == 20


@pytest.mark.parametrize("change", [{"b1": 1.0}, {"b2": 0.999, "mu_dtype": "bfloat16"}])
def test_bad_numbers(change):
    with pytest.raises(ValueError, match=r"Lion\."):
        tiny.lion_config(**change)
