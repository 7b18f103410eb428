# SPDX-License-Identifier: Apache-2.0
"""The step is compiled once, beside the first state, and its errors are not lost."""

import pathlib
import threading

import jax
import pytest
import tiny_run as tiny

from midjax import checkpoint
from midjax.train import guard, loop, program, restore

COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compilations():
    """Threads in which a train step is compiled from here on."""
    found: list[str] = []

    def hear(event: str, seconds: float, **more: object) -> None:
        if event == COMPILED and more.get("fun_name") == "jit(train_step)":
            found.append(threading.current_thread().name)

    jax.monitoring.register_event_duration_secs_listener(hear)
    yield found
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
        begun = loop.begin(tiny.train(tmp_path, steps=steps, **more))
        begun.early.wait()
        assert compilations == ["compiling"]
        loop.go(begun)
        assert compilations == ["compiling"]


def test_nothing_is_compiled_where_no_update_is_left(tmp_path, compilations):
    tiny.write_tokens(tmp_path / "tokens")
    loop.run(tiny.train(tmp_path, steps=4))
    assert compilations
    jax.clear_caches()
    del compilations[:]
    loop.run(tiny.train(tmp_path, steps=4))
    assert not compilations


class Step:
    """One that the compiler does not take."""

    def __init__(self, may_go_on: threading.Event) -> None:
        self.may_go_on = may_go_on

    def lower(self, *_):
        return self

    def compile(self):
        assert self.may_go_on.wait(60)
        raise RuntimeError("the compiler broke")


@pytest.fixture
def broken(monkeypatch):
    event = threading.Event()
    monkeypatch.setattr(program, "steps", lambda *given: {tiny.B: Step(event)})
    yield event
    event.set()


def test_what_the_compiler_says_is_heard_where_the_step_is_needed(tmp_path, broken):
    tiny.write_tokens(tmp_path / "tokens")
    broken.set()
    begun = loop.begin(tiny.train(tmp_path))
    with pytest.raises(RuntimeError, match="the compiler broke"):
        begun.early.wait()
    with pytest.raises(RuntimeError, match="the compiler broke"):
        loop.go(begun)


def test_a_step_that_cannot_be_traced_leaves_no_run_behind(tmp_path, broken, monkeypatch):
    tiny.write_tokens(tmp_path / "tokens")

    def fails(*given):
        raise ValueError("no such product")

    monkeypatch.setattr(Step, "lower", fails)
    recipe = tiny.train(tmp_path)
    with pytest.raises(ValueError, match="no such product"):
        loop.begin(recipe)
    assert not pathlib.Path(recipe.run_dir).exists()
    assert not [thread for thread in threading.enumerate() if thread.name == "compiling"]


def test_a_mistake_is_told_before_the_step_is_compiled(tmp_path, broken, monkeypatch):
    tiny.write_tokens(tmp_path / "tokens")
    compiling = []

    def fails(prepared, mesh):
        compiling.extend(t for t in threading.enumerate() if t.name == "compiling")
        raise ValueError("no state")

    monkeypatch.setattr(restore, "first_state", fails)
    with pytest.raises(ValueError, match="no state"):
        loop.begin(tiny.train(tmp_path))
    assert [thread.is_alive() for thread in compiling] == [True]


def test_a_damaged_checkpoint_waits_before_another_is_tried(tmp_path, broken, monkeypatch):
    """Or two steps would compile at once, for one run."""
    tiny.write_tokens(tmp_path / "tokens")
    compiling = []

    def fails(prepared, mesh):
        compiling.extend(t for t in threading.enumerate() if t.name == "compiling")
        broken.set()
        raise checkpoint.DamagedError("another", 4, "damaged")

    monkeypatch.setattr(restore, "first_state", fails)
    with pytest.raises(checkpoint.DamagedError):
        loop.begin(tiny.train(tmp_path))
    assert [thread.is_alive() for thread in compiling] == [False]
