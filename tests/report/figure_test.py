# SPDX-License-Identifier: Apache-2.0
"""SVG that can stand in a page beside others."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from midjax.report import figure


def draw(name):
    fig, axis = figure.new()
    axis.plot([0, 1e6], [1, 2], label="a <b>", **figure.series(0))
    axis.plot([0, 1e6], [2, 1], label="c", marker="o", **figure.series(9))
    figure.token_axis(axis)
    figure.legend(axis, 2)
    return figure.finish(fig, name=name, alt='says "x" & <y>', caption="read it so")


@pytest.fixture(scope="module")
def plots():
    return draw("one"), draw("two")


def test_is_xml_with_a_description(plots):
    svg = plots[0].svg.replace("xlink:href", "href")
    root = ElementTree.fromstring(svg)
    assert root.attrib["role"] == "img" and root.attrib["aria-label"] == 'says "x" & <y>'
    assert "viewBox" in root.attrib and "width" not in root.attrib  # it takes the page's width


def test_colours_are_the_pages(plots):
    svg = plots[0].svg
    assert "var(--s0)" in svg and "var(--s1)" in svg and "var(--fg)" in svg
    assert not re.findall(r"#(?:fe00|fd00)[0-9a-f]{2}", svg)
    assert figure.series(9)["linestyle"] != figure.series(1)["linestyle"]


def test_ids_of_two_plots_differ_and_references_resolve(plots):
    ids = [set(re.findall(r'\bid="([^"]+)"', plot.svg)) for plot in plots]
    assert not ids[0] & ids[1]
    for plot, known in zip(plots, ids, strict=True):
        used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', plot.svg))
        assert used and used <= known


def test_text_is_text_and_nothing_is_loaded(plots):
    svg = plots[0].svg
    assert ">a &lt;b&gt;</text>" in svg and ">200K</text>" in svg
    assert "font-family" not in svg
    assert not re.search(r"""(?:href|src)=["']?https?:|@import|url\(http""", svg)


def test_the_same_drawing_twice_is_the_same_text(plots):
    assert draw("one").svg == plots[0].svg
