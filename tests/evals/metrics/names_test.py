# SPDX-License-Identifier: Apache-2.0
"""Metrics are of kinds of tasks."""

import pytest

from midjax.evals.metrics import names


def test_a_metric_of_another_kind_is_refused_with_what_there_is():
    names.check("acc_norm", "choice")
    with pytest.raises(ValueError, match=r"'choice' has no metric 'acc_nrom'.* mean 'acc_norm'"):
        names.check("acc_nrom", "choice")
    with pytest.raises(ValueError, match="'code' has no metric 'acc'"):
        names.check("acc", "code")


def test_less_is_better_of_losses_only():
    known = {name for metrics in names.OF_KIND.values() for name in metrics}
    assert known >= names.LESS_IS_BETTER
    assert not any(name.startswith("acc") for name in names.LESS_IS_BETTER)
