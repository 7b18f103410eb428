# SPDX-License-Identifier: Apache-2.0
"""Items written by Orbax's own manager, read as files."""

import json
import threading

import orbax.checkpoint as ocp
import pytest

from midjax import late_json


def manager(folder) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(folder, item_handlers={"told": late_json.Handler()})


def composite(make) -> ocp.args.Composite:
    return ocp.args.Composite(told=late_json.Save(make))


def test_the_content_is_made_after_the_save_has_returned(tmp_path):
    """`make` waits here for what happens only then, as it would for a device."""
    has_returned, calls = threading.Event(), []

    def make():
        assert has_returned.wait(60)
        calls.append(threading.current_thread() is threading.main_thread())
        return {"loss": 0.5, "parts": ["ä", None]}

    with manager(tmp_path) as saving:
        saving.save(3, args=composite(make))
        assert not (tmp_path / "3").exists()
        has_returned.set()
        saving.wait_until_finished()
        assert calls == [False]
        written = (tmp_path / "3" / "told" / "metadata").read_text()
        assert json.loads(written) == {"loss": 0.5, "parts": ["ä", None]}


@pytest.mark.parametrize("content", [None, {"loss": object()}], ids=["raises", "not JSON"])
def test_what_cannot_be_made_or_written_fails_the_save(tmp_path, content):
    def make():
        if content is None:
            raise RuntimeError("device lost")
        return content

    error = (RuntimeError, "device lost") if content is None else (TypeError, "serializable")
    with pytest.raises(error[0], match=error[1]), manager(tmp_path) as saving:
        saving.save(3, args=composite(make))
    assert not (tmp_path / "3").exists()


def test_another_process_than_the_first_makes_it_and_writes_nothing(tmp_path, monkeypatch):
    """All of them sum what they hold, or the first would wait for ever."""
    monkeypatch.setattr(late_json.group, "is_first", lambda: False)
    calls = []
    with manager(tmp_path) as saving:
        saving.save(3, args=composite(lambda: calls.append(1) or {}))
        saving.wait_until_finished()
    assert calls == [1] and not list((tmp_path / "3").rglob("metadata"))


def test_nothing_else_is_offered():
    handler = late_json.Handler()
    for call in (handler.save, handler.restore):
        with pytest.raises(NotImplementedError):
            call("folder", None)
