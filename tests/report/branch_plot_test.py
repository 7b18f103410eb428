# SPDX-License-Identifier: Apache-2.0
"""The plot of a list of decays stands on its own and shows every one of them where it ended."""

from xml.etree import ElementTree

from midjax.report import branch_plot

SVG = "{http://www.w3.org/2000/svg}"
LINK = "{http://www.w3.org/1999/xlink}href"


def test_every_job_is_a_point_at_its_tokens_and_loss(tmp_path):
    jobs = [("short", 1000, 4.8), ("middle", 2000, 4.6), ("long", 4000, 4.4)]
    where = branch_plot.write(tmp_path / "new" / "branches.svg", jobs, trunk="runs/trunk")
    text = (tmp_path / "new" / "branches.svg").read_text("utf-8")
    assert where == str(tmp_path / "new" / "branches.svg") and "var(" not in text
    root = ElementTree.fromstring(text)
    words = {"".join(node.itertext()).strip() for node in root.iter(f"{SVG}text")}
    assert {"short", "middle", "long", "tokens of the decay", "nats per token"} <= words
    assert "decays of runs/trunk" in root.get("aria-label")
    marks = [n for n in root.iter(f"{SVG}use") if "#1f6fb2" in n.get("style", "")]
    x, y = ([float(mark.get(axis)) for mark in marks] for axis in "xy")
    assert round((x[2] - x[0]) / (x[1] - x[0]), 3) == 3  # tokens 3000 and 1000 apart
    assert round((y[2] - y[0]) / (y[1] - y[0]), 3) == 2  # a lower loss lies lower
    assert y[0] < y[2]
