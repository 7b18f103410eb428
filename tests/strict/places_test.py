# SPDX-License-Identifier: Apache-2.0
"""Where gin files are found: in a checkout, and in an installed wheel beside the package gin."""

import pytest

import midjax
from midjax.strict import fields, places


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A site-packages with midjax and gin-config in it; gives the folder of midjax."""
    package = tmp_path / "site-packages" / "midjax"
    (tmp_path / "site-packages" / "gin").mkdir(parents=True)
    (tmp_path / "site-packages" / "gin" / "__init__.py").touch()
    package.mkdir()
    monkeypatch.setattr(midjax, "__file__", str(package / "__init__.py"))
    return package


def test_wheel_has_its_own_folder(installed, tmp_path, monkeypatch):
    recipe = installed / "gin" / "recipes" / "a.gin"
    recipe.parent.mkdir(parents=True)
    recipe.write_text("")
    assert places.gin_root() == installed / "gin"
    monkeypatch.chdir(tmp_path)
    assert places.find_file("gin/recipes/a.gin") == places.find_file("recipes/a.gin") == recipe
    mine = tmp_path / "mine.gin"
    mine.write_text("")
    assert places.find_file("mine.gin") == mine
    assert places.find_include("recipes/a.gin", mine, "mine.gin:1") == recipe


def test_gin_config_is_never_taken_for_the_recipes(installed):
    with pytest.raises(fields.ConfigError, match="midjax's gin/ is neither in"):
        places.gin_root()


def test_a_checkout_has_it_beside_the_package(installed):
    (installed.parent / "gin" / "__init__.py").unlink()
    assert places.gin_root() == installed.parent / "gin"
