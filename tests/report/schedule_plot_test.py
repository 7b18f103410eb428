# SPDX-License-Identifier: Apache-2.0
"""The plot of a schedule is an SVG file that stands on its own."""

from xml.etree import ElementTree

import pytest

from midjax.report import schedule_plot

SVG = "{http://www.w3.org/2000/svg}"


def test_a_file_of_its_own(tmp_path):
    where = schedule_plot.write(
        tmp_path / "new" / "rates.svg",
        tokens=[0, 1000, 5000, 9000],
        rates=[0.0, 3e-3, 3e-3, 1e-4],
        turns=[("warm-up", 0), ("decay & more", 5000)],
    )
    text = (tmp_path / "new" / "rates.svg").read_text("utf-8")
    assert where == str(tmp_path / "new" / "rates.svg") and "var(" not in text
    root = ElementTree.fromstring(text)
    assert root.tag == f"{SVG}svg" and float(root.get("width")) > 300
    words = {"".join(node.itertext()).strip() for node in root.iter(f"{SVG}text")}
    assert {"warm-up", "decay & more", "learning rate", "tokens"} <= words
    assert "from 0 to 0.0001, at most 0.003" in root.get("aria-label")
    line = next(n for n in root.iter(f"{SVG}path") if "#1f6fb2" in n.get("style", ""))
    assert line.get("d").split().count("L") == 3


def test_only_svg(tmp_path):
    with pytest.raises(ValueError, match="ends in .svg"):
        schedule_plot.write(tmp_path / "rates.png", tokens=[0], rates=[1.0], turns=[])
