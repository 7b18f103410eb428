# SPDX-License-Identifier: Apache-2.0
"""One trunk that the tests of this folder branch off."""

import shutil

import pytest
import tiny_branch


@pytest.fixture(scope="session")
def grown(tmp_path_factory):
    """The original, which no test writes into."""
    folder = tmp_path_factory.mktemp("trunk")
    tiny_branch.trunk(folder)
    return folder


@pytest.fixture
def folder(grown, tmp_path):
    """A copy for each test, with the trunk and the tokens."""
    return shutil.copytree(grown, tmp_path / "work")
