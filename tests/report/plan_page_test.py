# SPDX-License-Identifier: Apache-2.0
"""A plan's page: self-contained, and with every number that it is given."""

import html.parser

from plan_examples import PLAN

from midjax.report import plan_page


class Reader(html.parser.HTMLParser):
    """Tags that are open, addresses, words."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.words = [], [], []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "br", "path", "use", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("path", "use", "rect"):
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data):
        self.words.append(" ".join(data.split()))


def test_the_page_has_all_and_reads_nothing_else(tmp_path):
    place = plan_page.write(PLAN, str(tmp_path / "plan.html"))
    text = (tmp_path / "plan.html").read_text()
    assert place == str(tmp_path / "plan.html")
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert all(address.startswith("#") for address in reader.addresses)
    words = " ".join(reader.words)
    for said in (
        "nothing was measured",
        "off by 9 %",
        "45.7 %",
        "v5e-64",
        "12 GB",
        "1.5 GB a chip",
    ):
        assert said in words
    assert "--gin.Mesh.fsdp=64" in words and "--gin.not=shown" not in words
    assert text.count("<figure>") == 5  # time, memory, timeline, roofline, front
