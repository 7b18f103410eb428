# SPDX-License-Identifier: Apache-2.0
"""One compiler for the tests of this folder: what one of them compiles, the next finds."""

import plan_recipes
import pytest
from quick_compilation import thorough_compilation  # noqa: F401 (a fixture)

from midjax.plan import compiler


@pytest.fixture(scope="session")
def heard():
    """What the compiler told people."""
    return []


@pytest.fixture(scope="session")
def compiler_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="session")
def made(compiler_folder, heard):
    plan_recipes.need_compiler()
    with compiler.Compiler(str(compiler_folder), heard.append) as found:
        yield found
