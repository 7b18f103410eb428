# SPDX-License-Identifier: Apache-2.0
"""The step is compiled once, beside the first state, and its errors are not lost."""

import threading

import jax
import pytest
import tiny_run as tiny

from midjax.train import guard, loop, program, restore

COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compilations():
    """What is compiled from here on, by name."""
    names: list[str] = []

    def hear(event: str, seconds: float, **more: object) -> None:
        if event == COMPILED:
            names.append(str(more.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(hear)
    yield names
    jax.monitoring.unregister_event_duration_listener(hear)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {
            "microbatches": 2,
            "spikes": guard.Spikes(window_steps=8, deviations=9.0, least_history_steps=4),
        },
    ],
)
def test_the_step_is_compiled_once_fresh_and_resumed(tmp_path, compilations, more):
    """The loop's first call finds what was compiled for shapes alone."""
    tiny.write_tokens(tmp_path / "tokens")
    for steps in (4, 8):
        jax.clear_caches()
        del compilations[:]
        loop.run(tiny.train(tmp_path, steps=steps, **more))
        assert [name for name in compilations if "train_step" in name] == ["jit(train_step)"]


def test_nothing_is_compiled_where_no_update_is_left(tmp_path, compilations):
    tiny.write_tokens(tmp_path / "tokens")
    loop.run(tiny.train(tmp_path, steps=4))
    jax.clear_caches()
    del compilations[:]
    loop.run(tiny.train(tmp_path, steps=4))
    assert not [name for name in compilations if "train_step" in name]


class Broken:
    def lower(self, *_):
        raise RuntimeError("the compiler broke")


def test_what_the_compiler_says_is_heard_where_the_step_is_needed(tmp_path, monkeypatch):
    tiny.write_tokens(tmp_path / "tokens")
    monkeypatch.setattr(program, "steps", lambda *given: {tiny.B: Broken()})
    begun = loop.begin(tiny.train(tmp_path))
    with pytest.raises(RuntimeError, match="the compiler broke"):
        begun.early.wait()
    with pytest.raises(RuntimeError, match="the compiler broke"):
        loop.go(begun)


def test_a_start_that_fails_leaves_nothing_compiling(tmp_path, monkeypatch):
    tiny.write_tokens(tmp_path / "tokens")
    threads = []

    def fails(prepared, mesh):
        threads.extend(t for t in threading.enumerate() if t.name == "compiling")
        raise ValueError("no state")

    monkeypatch.setattr(restore, "first_state", fails)
    with pytest.raises(ValueError, match="no state"):
        loop.begin(tiny.train(tmp_path))
    assert not any(thread.is_alive() for thread in threads)
