# SPDX-License-Identifier: Apache-2.0
"""Programs that are kept: found again, none without a folder, and never a wrong one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from midjax import compilation


@pytest.fixture
def compiled(monkeypatch):
    """Compiles one program anew; counts what was taken from the cache and what was put there."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    before = jax.config.jax_compilation_cache_dir
    found = {"cache_hits": 0, "cache_misses": 0}

    def count(event, **_):
        name = event.rpartition("/")[2]
        if name in found:
            found[name] += 1

    def compiled():
        found.update(cache_hits=0, cache_misses=0)
        jax.clear_caches()
        x = np.linspace(-2, 2, 5, dtype=np.float32)
        np.testing.assert_allclose(jax.jit(lambda x: jnp.sin(x) * 3)(x), 3 * np.sin(x), rtol=1e-5)
        return found["cache_hits"], found["cache_misses"]

    jax.monitoring.register_event_listener(count)
    yield compiled
    jax.monitoring.unregister_event_listener(count)
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


def test_a_program_is_compiled_once_and_kept_by_kind_of_device(tmp_path, compiled):
    compilation.keep(str(tmp_path))
    assert compiled() == (0, 1)
    assert compiled() == (1, 0)
    assert [p.name for p in tmp_path.iterdir()] == [compilation.kind()]
    assert compilation.kind().startswith("cpu-")
    compilation.keep(None)
    assert compiled() == (0, 0)


def test_an_entry_that_was_cut_off_is_compiled_again(tmp_path, compiled):
    compilation.keep(str(tmp_path))
    compiled()
    for entry in tmp_path.glob("*/*-cache"):
        entry.write_bytes(entry.read_bytes()[:-40])
    with pytest.warns(UserWarning, match="persistent compilation cache"):
        compiled()


def test_the_environment_comes_first(tmp_path, monkeypatch, compiled):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "theirs"))
    compilation.keep(str(tmp_path / "ours"))
    compiled()
    assert not (tmp_path / "ours").exists()


def test_another_processor_has_another_folder(monkeypatch):
    here = compilation.kind()
    monkeypatch.setattr(compilation, "_instructions", lambda: ["sse2"])
    assert compilation.kind() != here
