# SPDX-License-Identifier: Apache-2.0
"""Trees as text. That the gin text loads to an equal tree is tested with gin, in config_test."""

import dataclasses

import pytest

from midjax import config
from midjax.strict import text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Knob:
    value: float | int | bool | str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    knobs: tuple[Knob, ...] = ()
    by_name: dict[str, Knob] = dataclasses.field(default_factory=dict)
    numbers: list[tuple[int, ...]] = dataclasses.field(default_factory=list)
    inner: "Panel | None" = None


def test_gin_text_names_instances_only_where_there_are_several():
    one = Panel(knobs=(Knob(value=1), Knob(value=1)))
    assert text.gin(one) == (
        "Panel.knobs = (@Knob(), @Knob(),)\nPanel.by_name = {}\nPanel.numbers = []\n"
        "Panel.inner = None\n\nKnob.value = 1\n"
    )
    two = Panel(knobs=(Knob(value=1), Knob(value=2)))
    assert "Panel.knobs = (@knobs_0/Knob(), @knobs_1/Knob(),)" in text.gin(two)


@pytest.mark.parametrize(
    "panel",
    [
        Panel(),
        Panel(knobs=(Knob(value=1), Knob(value=1.0), Knob(value=True), Knob(value="1"))),
        Panel(knobs=(Knob(value=-1e-30),), numbers=[(), (1,), (-1, 2)]),
        Panel(by_name={"z": Knob(value=None), "ä b": Knob(value="it's \"\\\n%A @B()")}),
        Panel(by_name={"a-b": Knob(value=1), "a_b": Knob(value=2)}),
        Panel(knobs=(Knob(value=1),), inner=Panel(inner=Panel(knobs=(Knob(value=2),)))),
    ],
)
def test_gin_text_loads_to_an_equal_tree(panel, tmp_path):
    path = tmp_path / "panel.gin"
    path.write_text(text.gin(panel), encoding="utf-8")
    again = config.load_class(Panel, [str(path)])
    assert config.to_json(again) == config.to_json(panel)
    assert repr(again) == repr(panel)


def test_show():
    shown = text.show(Panel(knobs=(Knob(value=1),), numbers=[]))
    assert shown.splitlines() == [
        "Panel   (* = not the default)",
        "* knobs[0]       = @Knob()",
        "* knobs[0].value = 1",
        "  by_name        = {}",
        "  numbers        = []",
        "  inner          = None",
    ]
