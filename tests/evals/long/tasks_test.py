# SPDX-License-Identifier: Apache-2.0
"""Names and groups, and RULER's own numbers."""

import pytest

from midjax.evals.long import tasks


def test_rulers_tasks():
    """Of its synthetic.yaml and constants.py."""
    room = {name: task.answer_tokens for name, task in tasks.TASKS.items()}
    assert len(room) == 13
    assert {room[name] for name in tasks.GROUPS["niah"]} == {128} and len(tasks.GROUPS["niah"]) == 8
    assert (room["vt"], room["cwe"], room["fwe"]) == (30, 120, 50)
    assert room["qa_squad"] == room["qa_hotpot"] == 32
    part = {name for name, task in tasks.TASKS.items() if task.match == "part"}
    assert part == {"qa_squad", "qa_hotpot"}


def test_groups_are_resolved_and_nothing_is_asked_twice():
    assert tasks.named(("vt", "niah", "niah_single_1")) == ("vt", *tasks.GROUPS["niah"])
    assert set(tasks.named(("ruler",))) - set(tasks.named(("ruler_synthetic",))) == {
        "qa_squad",
        "qa_hotpot",
    }
    with pytest.raises(ValueError, match=r"names 'cew'; there are niah_single_1.*mean 'cwe'\?"):
        tasks.named(("vt", "cew"))
