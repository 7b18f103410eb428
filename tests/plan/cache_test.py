# SPDX-License-Identifier: Apache-2.0
"""Keys of compiled steps, and entries."""

import pathlib

import plan_recipes
import pytest

from midjax.plan import cache
from midjax.strict import fields

VERSIONS = {"jax": "1", "jaxlib": "1", "libtpu": "2"}


def key(config=None, **kwargs):
    given = {"topology": "v5e:2x2", "slices": 1, "rows": 4, "options": {}, "versions": VERSIONS}
    plain = fields.to_json(config or plan_recipes.train())
    return cache.key(plain, **(given | kwargs))


def test_a_key_is_of_what_is_compiled():
    assert key() == key()
    same = plan_recipes.train(run_dir="elsewhere", seed=7, max_consecutive_skips=9)
    assert key(same) == key()
    others = [
        key(rows=8),
        key(topology="v5e:4x4"),
        key(slices=2),
        key(options={"xla_a": "1"}),
        key(versions=VERSIONS | {"libtpu": "3"}),
        key(plan_recipes.train(microbatches=2)),
        key(plan_recipes.train(state_memory="pinned_host")),
    ]
    assert len({key(), *others}) == 1 + len(others)


def test_a_key_is_of_midjaxs_own_source(monkeypatch):
    before = key()
    monkeypatch.setattr(cache, "_source", lambda: "another")
    assert key() != before


def test_an_entry_without_its_texts_is_none(tmp_path):
    assert cache.read(tmp_path) is None
    cache.write(tmp_path, {"outcome": "compiled"})
    assert cache.read(tmp_path) is None
    for name in cache.TEXTS:
        cache.write_text(tmp_path, name, f"{name} \u2192")
    assert cache.read(tmp_path) == {"outcome": "compiled"}
    assert cache.read_text(tmp_path, "buffers") == "buffers \u2192"
    (tmp_path / "record.json").write_text("{")
    assert cache.read(tmp_path) is None


def test_a_refusal_has_no_texts(tmp_path):
    cache.write(tmp_path, {"outcome": "refused"})
    assert cache.read(tmp_path) == {"outcome": "refused"}


@pytest.mark.parametrize("home", ["", "/xdg"])
def test_the_folder(home, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    monkeypatch.setenv("HOME", "/me")
    expected = pathlib.Path(home or "/me/.cache") / "midjax" / "plan"
    assert cache.folder(None) == expected
    assert cache.folder("~/x") == pathlib.Path("/me/x")
