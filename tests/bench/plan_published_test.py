# SPDX-License-Identifier: Apache-2.0
"""That the benchmarks of `plan` still fit the product: they run too long to be tests themselves."""

import pathlib
import sys

import pytest

from midjax.hardware import slices
from midjax.model import transformer

PARAMETERS = {
    "llama2-70b-v5p": 68_976_648_192,
    "llama3.1-8b-v6e": 8_030_261_248,
    "llama3.1-405b-v6e": 405_853_388_800,
    "mixtral-8x7b-v6e": 46_702_792_704,
}


@pytest.fixture
def published(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(pathlib.Path(__file__).parent), *sys.path])
    import plan_published

    return plan_published


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_work_is_the_published_one(published, name):
    """Parameters as the models' own cards count them, and the rows that were published."""
    run = published.RUNS[name]
    config = published.planned(run)
    assert transformer.parameter_count(config.model) == PARAMETERS[name]
    assert config.data.batch_rows == run.rows * slices.parse(run.slice).chips


def test_the_memory_benchmark_is_a_recipe(published):
    import plan_memory

    config = plan_memory.train(8)
    assert transformer.parameter_count(config.model) == 1_235_814_400
    assert config.data.batch_rows == 8
