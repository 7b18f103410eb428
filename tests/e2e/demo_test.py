# SPDX-License-Identifier: Apache-2.0
"""The whole job on the real corpora, every verb and recipe of the demo, with few tokens.

Of what is held out there are the first documents alone: evaluations are most of the time.
"""

import gzip
import json

import pytest

from midjax import __main__ as cli
from midjax import checkpoint, demo, files

# The recipes as they are, but for how long they train and how much they generate.
SHORT = {
    "train": ["--gin.Train.train_tokens=6_144", "--gin.Schedule.warmup_steps=0"],
    "eval": ["--gin.Samples.max_new_tokens=2", "--gin.LongDocuments.bucket_tokens=512"],
}
HELD_OUT = 4  # documents of each domain
DECAYS = {"anneal": "--gin.Schedule.decay_tokens=6_144", "extend": "--gin.Schedule.decay_steps=2"}


def hold_out(folder):
    """The first documents that the demo holds out, as files of folder."""
    for domain in ("prose", "code", "maths"):
        name = f"{domain}.heldout.jsonl.gz"
        packed = files.path(f"package:demo_data/{name}").read_bytes()
        lines = gzip.decompress(packed).splitlines(keepends=True)
        (folder / name).write_bytes(gzip.compress(b"".join(lines[:HELD_OUT])))


def shortened(line):
    verb, recipe = line[0], line[1]
    extra = list(SHORT.get(verb, []))
    if verb == "tokenize" and "stories" not in recipe:
        extra += [
            f"--gin.heldout_{domain}/JsonLines.path={domain}.heldout.jsonl.gz"
            for domain in ("prose", "code", "maths")
        ]
    if verb == "train" and ("midtrain" in recipe or "control.gin" in recipe):
        extra.append(DECAYS["anneal"])
        if "midtrain" in recipe:
            extra.append("--gin.target/Stage.start_tokens=3_072")
    if verb == "eval" and "stories" in recipe:
        extra.append('--gin.Eval.domains=("prose",)')
    if verb == "train" and "stories" in recipe:
        extra += ["--gin.Schedule.decay_steps=3", '--gin.Evaluation.domains=("prose",)']
    if verb == "train" and "extend" in recipe:
        # Without its warm-up from zero the extension's rate jumps, and must say so.
        extra += [DECAYS["extend"], "--gin.Start.allow_lr_jump=the context is new"]
    return [*line, *extra]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        hold_out(folder)
        demo.run([], lambda line: cli.main(shortened(line)))
        # Twice in a row: all is kept. What only reads is done again, and need not be here.
        kept = ("tokenize", "train", "import")
        demo.run([], lambda line: cli.main(shortened(line)) if line[0] in kept else 0)
    return folder / demo.OUTPUT


def test_every_step_left_its_result(output):
    for run, steps in (("pretrain", 6), ("midtrain", 6), ("control", 6), ("extend", 3)):
        assert checkpoint.steps(str(output / run))[-1] == steps
        rows = (output / run / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(row)["step"] for row in rows] == list(range(1, steps + 1))
    page = (output / "report.html").read_text()
    for domain in ("prose", "code", "maths"):
        assert domain in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script src" not in page


def test_evals_name_every_domain(output):
    for run, name in (("pretrain", "before"), ("control_extend", "control"), ("extend", "after")):
        result = json.loads((output / run / "eval" / f"{name}.json").read_text())
        assert set(result["domains"]) == {"prose", "code", "maths"}
        # An untrained model of 2,048 tokens: about 11 bits per token of about 3 bytes.
        assert all(2 < d["bits_per_byte"] < 5 for d in result["domains"].values())
        assert len(result["samples"]) == 4 and result["by_position"]["documents"] == HELD_OUT


def test_a_model_of_others_is_mid_trained(output):
    """Pretrained on children's stories. After 60 updates, not 3, it needs 2.30 bits per byte."""
    bits = {}
    for run, name in (("stories260K", "before"), ("stories", "after")):
        result = json.loads((output / run / "eval" / f"{name}.json").read_text())
        bits[name] = result["domains"]["prose"]["bits_per_byte"]
        assert result["samples"][0]["prompt"].startswith("Once upon a time")
    assert bits["before"] == pytest.approx(2.673, abs=2e-3) and bits["after"] < bits["before"]
    assert "stories260K" in (output / "stories.html").read_text()


def test_the_export_computes_what_the_run_does(output):
    result = json.loads((output / "export" / "export.json").read_text())
    assert result["max_difference"] < 2e-5 and result["compared_tensors"] == 2 + 9 * 4
    names = {p.name for p in (output / "export").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names


def test_the_extension_recipes_go_on_from_the_demo(output, monkeypatch):
    """4x: measured before, trained, measured after, one page; 16x differs in numbers only."""
    monkeypatch.chdir(output.parent.parent)
    few = ["--gin.Needles.per_cell=2", "--gin.Needles.depths=(0.5,)"]
    few += ["--gin.LongTasks.per_cell=1", "--gin.LongTasks.row_tokens=(512,)"]
    few += ['--gin.LongTasks.tasks=("niah_single_2",)']
    before = ["--gin.Eval.name=before_4x", f"--gin.Eval.run={demo.OUTPUT}/midtrain"]
    measure = ["eval", "--gin_file=recipes/extend_4x_eval.gin", *few]
    for line in (
        [*measure, *before],
        shortened(["train", "--gin_file=recipes/extend_4x.gin"]),
        measure,
        ["report", "--gin_file=recipes/extend_4x_report.gin"],
    ):
        assert cli.main(line) == 0
    after = json.loads((output / "extend_4x" / "eval" / "after_4x.json").read_text())
    cells = after["needle"]["cells"]
    assert [cell["row_tokens"] for cell in cells] == [256, 512, 1024]
    assert all(0 < cell["nats_per_token"] < 20 for cell in cells)
    (cell,) = after["long_tasks"]["cells"]
    assert cell["inexact"] == 0 and 2 < cell["bits_per_byte"] < 20
    assert after["context_tokens"] == 1024 and after["by_position"]["documents"] == HELD_OUT
    start = json.loads((output / "extend_4x" / "events.jsonl").read_text().splitlines()[0])
    assert start["event"] == "start" and start["packing"]["long_prose"]["dropped"] == {
        "fewer than 2049 tokens": 22
    }
    page = (output / "extend_4x.html").read_text()
    assert "Needle test, before" in page and "Needle test, after" in page
    assert "Long tasks in numbers" in page
