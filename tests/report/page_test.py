# SPDX-License-Identifier: Apache-2.0
"""The page as a reader gets it: complete, self-contained, safe; the terminal's table; errors."""

import dataclasses
import html.parser
import json
import re

import pytest

from midjax import files
from midjax.report import page

VOID = {"meta", "link", "br", "img", "hr", "input", "use", "path"}
NASTY = "</pre><script>alert(1)</script>"


def write_run(folder, label, start):
    folder.mkdir(parents=True)
    rows = [
        {"step": s, "tokens": 64 * s, "lr": 1e-3, "skipped": int(s == 2 and label == "anneal"),
         "loss/code": 3 - s / 10, "loss/prose": None, "tokens/code": 60, "tokens/prose": 0,
         "asked/code": 0.9, "asked/prose": 0.1, "rows/code": s, "rows/prose": 0,
         "epochs/code": s / 9, "epochs/prose": 0.0, "perf/tokens_per_second": 1000.0}
        for s in range(1, 6)
    ]  # fmt: skip
    events = [start, {"event": "stage", "name": "sharp", "step": 1, "weights": {"code": 1.0}},
              {"event": "goodput", "run_seconds": {"step": 45.0, "start": 15.0}}]  # fmt: skip
    for name, lines in (("metrics", rows), ("events", events)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (folder / "config.json").write_text(f'{{"seed": 1, "note": "{NASTY}"}}')


NEEDLE = {
    "source": "long", "per_cell": 4,
    "cells": [{"row_tokens": 2048, "depth": 0.25, "accuracy": 0.75, "nats_per_token": 1.5,
               "nats_without": 4.0, "saved_error": 0.125}],
}  # fmt: skip


LONG_TASKS = {
    "source": "long", "threshold": 0.856, "effective_tokens": 512,
    "cells": [{"task": "vt", "row_tokens": 512, "samples": 8, "inexact": 1, "score": 0.875,
               "score_error": 0.125, "chance": 0.01}],
    "means": [{"row_tokens": 512, "score": 0.875, "chance": 0.01}],
}  # fmt: skip


def write_eval(path, bits, samples):
    domains = {
        d: {"bits_per_byte": b, "nats_per_token": 1.0, "tokens": 9, "bytes": 30, "documents": 2}
        for d, b in bits.items()
    }
    buckets = [{"from": 0, "to": 8, "nats_per_token": 2.5, "tokens": 8},
               {"from": 8, "to": 16, "nats_per_token": None, "tokens": 0}]  # fmt: skip
    position = {"source": "long", "row_tokens": 16, "documents": 1, "buckets": buckets}
    result = {"name": path.stem, "run": "r", "step": 5, "domains": domains}
    files.write_json(path, result | {"by_position": position, "samples": samples})


def add_long(path):
    files.write_json(path, files.read_json(path) | {"needle": NEEDLE, "long_tasks": LONG_TASKS})


@pytest.fixture
def config(tmp_path):
    start = {"event": "start", "kind": "fresh", "from": None, "time": 1.0}
    write_run(tmp_path / "pre", "pretrain", start)
    anneal = {"event": "start", "kind": "anneal", "from": str(tmp_path / "pre"), "from_step": 5}
    write_run(tmp_path / "mid", "anneal", anneal)
    sample = {"prompt": "Once", "continuation": f" upon {NASTY}"}
    write_eval(tmp_path / "before.json", {"code": 3.0, "prose": 2.0}, [])
    write_eval(tmp_path / "control.json", {"code": 2.5, "prose": 2.0}, [sample])
    write_eval(tmp_path / "after.json", {"code": 2.0, "prose": 2.04}, [sample])
    files.write_json(
        tmp_path / "export.json",
        {"compared_with": "midjax", "max_difference": 2e-6, "compared_tokens": 64},
    )
    return page.Report(
        title="A <mixture>",
        output=str(tmp_path / "out" / "report.html"),
        runs=(("pretrain", str(tmp_path / "pre")), ("anneal", str(tmp_path / "mid"))),
        columns=tuple((n, str(tmp_path / f"{n}.json")) for n in ("before", "control", "after")),
        baseline="before",
        control="control",
        result="after",
        export=str(tmp_path / "export.json"),
        guard_domain="prose",
        guard_percent=5.0,
    )


class Checker(html.parser.HTMLParser):
    """Balanced tags, ids, what is linked or loaded."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.tags, self.text = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for key, value in attributes:
            if key == "id":
                self.ids.append(value)
            if key in ("href", "src", "xlink:href", "action", "srcset"):
                self.links.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_stands_alone(config, tmp_path):
    result = page.run(config)
    text = files.path(config.output).read_text()
    assert result.path == config.output and result.bytes == len(text.encode())
    assert "Needle test" not in text and "Long tasks" not in text
    add_long(tmp_path / "after.json")
    page.run(config)
    text = files.path(config.output).read_text()
    found = Checker()
    found.feed(text)
    assert not found.open
    assert len(set(found.ids)) == len(found.ids)
    assert found.links and all(link.startswith("#") for link in found.links)
    assert {link[1:] for link in found.links} <= set(found.ids)
    assert not {"script", "link", "img", "iframe"} & set(found.tags)
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    assert "75% of 1m00s" in text
    assert found.tags.count("figure") == found.tags.count("figcaption") == 10
    words = " ".join(" ".join(found.text).split())
    for expected in (
        "A <mixture>",
        "Bought: against control, after needs 20.0 % fewer bits per byte on code.",
        "Guard: prose rose by 2.00 % against control; the limit is a rise of less than 5 %.",
        "Loaded back with midjax and run on 64 tokens of text: no logit differs from ours by "
        "more than 2e-06.",
        "updates whose loss or gradient was not finite: 1 (step 2)",
        "Needle test, after: share of 4 pass keys found",
        "after: 4 keys each, in text of long",
        "75 %; +2.50 ± 0.12 (4.000 to 1.500)",
        "Long tasks (RULER's, on held-out text)",
        "after: 8 samples each, in text of long",
        "88 ± 12 % (chance 1.0 %)",
        "with a mean above 85.6 %: 512 tokens. Prompts shorter than asked for: 1.",
        "not generated",
        NASTY,
    ):
        assert expected in words


def test_the_result_says_what_the_page_says(config):
    result = page.run(config)
    assert result.held is True
    assert result.change_percent == pytest.approx({"code": -20.0, "prose": 2.0})
    broken = page.run(dataclasses.replace(config, guard_percent=1.5))
    assert broken.held is False and "It is broken." in broken.trade[-1]
    assert 'class="card verdict broken"' in files.path(config.output).read_text()


def test_the_same_inputs_give_the_same_page(config):
    page.run(config)
    first = files.path(config.output).read_text()
    page.run(config)
    assert files.path(config.output).read_text() == first


def test_the_terminal_table(config):
    lines = page.terminal_table(config).splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines if "|" in line]
    assert cells[0] == [
        "domain",
        "before",
        "control",
        "after",
        "after vs control",
        "after vs before",
    ]
    assert cells[2] == ["code", "3.0000", "2.5000", "2.0000", "−20.0 %", "−33.3 %"]
    assert cells[3] == ["prose", "2.0000", "2.0000", "2.0400", "+2.00 %", "+2.00 %"]
    assert any(line.startswith("Guard: prose rose by 2.00 %") for line in lines)


def test_without_an_export_and_without_samples(config, tmp_path):
    for name in ("before", "control", "after"):
        value = files.read_json(tmp_path / f"{name}.json") | {"samples": [], "by_position": None}
        files.write_json(tmp_path / f"{name}.json", value)
    page.run(dataclasses.replace(config, export=None))
    text = files.path(config.output).read_text()
    assert 'id="export"' not in text and 'id="samples"' not in text
    assert 'href="#export"' not in text and 'href="#samples"' not in text


def test_a_number_that_is_missing_is_a_dash(config, tmp_path):
    value = files.read_json(tmp_path / "after.json")
    value["domains"]["code"]["bits_per_byte"] = None
    files.write_json(tmp_path / "after.json", value)
    result = page.run(config)
    assert result.change_percent["code"] is None and result.held is True
    assert "code: the loss of after is not a finite number." in page.terminal_table(config)


def test_nothing_is_written_when_an_input_is_missing(config, tmp_path):
    (tmp_path / "mid" / "metrics.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"mid/metrics.jsonl.*midjax train"):
        page.run(config)
    assert not files.path(config.output).exists()
    (tmp_path / "control.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"control.json.*midjax eval"):
        page.terminal_table(config)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"runs": ()}, "Report.runs is empty"),
        ({"columns": (("a", "x"), ("a", "y"))}, "labels must differ"),
        ({"control": "nobody"}, "control='nobody' is not a label"),
        ({"result": "control"}, "nothing to compare"),
        ({"guard_percent": 0.0}, "must be positive"),
    ],
)
def test_bad_fields_are_refused(config, changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(config, **changes)


def test_what_was_measured_on_the_way_and_what_was_kept(config, tmp_path):
    """A torn line costs no other one; a page of runs that measured nothing has no such section."""
    page.run(config)
    assert 'id="kept"' not in files.path(config.output).read_text()
    lines = [
        {"name": "held_out", "step": step, "weights": "params", "scores": {"domain/x/nll": value}}
        for step, value in ((0, 2.5), (3, 1.5))
    ]
    text = [json.dumps(lines[0]), '{"name": "held', json.dumps(lines[1])]
    (tmp_path / "mid" / "evals.jsonl").write_text("\n".join(text) + "\n")
    against = {
        "name": "held_out", "run": NASTY, "step": 3, "parent": {"run": "p", "step": 0},
        "level": 0.95, "gates": [],
        "rows": [{"score": "domain/x", "parent": 2.5, "now": 1.5, "delta": -1.0,
                  "interval": [-1.25, -0.75], "verdict": "better"}],
        "retention": {"value": 1.25, "interval": None, "left_out": {}},
    }  # fmt: skip
    files.write_json(tmp_path / "mid" / "eval" / "held_out.against.json", against)
    page.run(config)
    found = files.path(config.output).read_text()
    assert 'id="kept"' in found and 'href="#kept"' in found and NASTY not in found
    assert "−1.2500 to −0.7500" in found and "domain/x/nll from 2.5000 to 1.5000" in found
