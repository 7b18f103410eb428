# SPDX-License-Identifier: Apache-2.0
"""One finished run that the tests of this folder start from."""

import shutil

import pytest
import tiny_run as tiny

from midjax.train import loop


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The original, which no test writes into."""
    folder = tmp_path_factory.mktemp("finished")
    tiny.write_tokens(folder / "tokens")
    loop.run(tiny.train(folder))
    return folder


@pytest.fixture
def source(finished, tmp_path):
    """A folder with tokens and a finished pretraining run of 8 steps, saved at 4 and 8.

    A copy for each test: a run that one test leaves behind would be resumed by another.
    """
    return shutil.copytree(finished, tmp_path / "source")
