# SPDX-License-Identifier: Apache-2.0
"""`midjax tokenize`, killed with SIGKILL at random moments: a rerun leaves the same bytes."""

import contextlib
import gzip
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading

import pytest

from midjax import config, demo_data
from midjax.batches import tokenize

# `make soak` asks for more.
KILLS = int(os.environ.get("MIDJAX_SOAK_KILLS", "6"))
RECIPE = """
Tokenize.sources = {"maths": @maths/JsonLines(), "code": @code/JsonLines()}
maths/JsonLines.path = "%(folder)s/maths-*.jsonl"
code/JsonLines.path = "%(folder)s/code-*.jsonl"
JsonLines.format = @Text()
Text.field = "text"
JsonLines.id_field = "id"
JsonLines.max_bad_records = 0
Tokenize.tokenizer = @FastTokenizer()
FastTokenizer.path = "package:demo_data/tokenizer"
FastTokenizer.bos_token = "<|begin_of_text|>"
FastTokenizer.eos_token = "<|end_of_text|>"
Tokenize.output = "out"
Tokenize.shard_tokens = 10_000
Tokenize.processes = 2
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe over seven small files, for about 20 parts."""
    folder = tmp_path_factory.mktemp("texts")
    for name, documents, count in (("maths", 400, 4), ("code", 30, 3)):
        with gzip.open(demo_data.path(f"{name}.train.jsonl.gz"), "rt", encoding="utf-8") as file:
            lines = [line for _, line in zip(range(documents), file, strict=False)]
        for part in range(count):
            (folder / f"{name}-{part}.jsonl").write_text("".join(lines[part::count]))
    place = folder / "recipe.gin"
    place.write_text(RECIPE % {"folder": folder})
    return str(place)


def run_here(recipe, output, processes):
    tokenize.run(
        config.load(
            "tokenize", [recipe], [f"Tokenize.output={output}", f"Tokenize.processes={processes}"]
        )
    )


def start(recipe, output):
    arguments = ["tokenize", f"--gin_file={recipe}", f"--gin.Tokenize.output={output}"]
    return subprocess.Popen(
        [sys.executable, "-m", "midjax", *arguments],
        stdout=subprocess.DEVNULL,
        cwd=pathlib.Path(tokenize.__file__).parents[2],
    )


def content(output):
    """Of the token folders; the run's own config.gin names its folder."""
    return {
        str(place.relative_to(output)): place.read_bytes()
        for place in sorted(output.rglob("*"))
        if place.is_file() and not place.name.startswith("config.")
    }


def names(output):
    with contextlib.suppress(FileNotFoundError):  # a folder that is gone while it is listed
        return {str(place.relative_to(output)) for place in output.rglob("*-*")}
    return set()


def finished_parts(output):
    """Token file of each part that has its record -> its inode."""
    found = {}
    for place in output.rglob("part-*.json"):
        with contextlib.suppress(FileNotFoundError):
            json.loads(place.read_text())
            tokens = place.with_name(place.name.replace("part-", "tokens-")).with_suffix(".bin")
            found[tokens] = os.stat(tokens).st_ino
    return found


def test_kills_leave_nothing_that_a_rerun_does_not_mend(recipe, tmp_path):
    whole = tmp_path / "whole"
    process, ever = start(recipe, whole), set()
    while process.poll() is None:
        ever |= names(whole)
        threading.Event().wait(0.001)  # the processors are for the runs
    assert process.returncode == 0
    expected = content(whole)
    assert len(ever) > 60  # of which a kill is at a random one
    rng = random.Random(0)
    kept = unfinished = 0
    for number in range(KILLS):
        output = tmp_path / str(number)
        process, seen = start(recipe, output), set()
        after, then = rng.randrange(len(ever)), rng.random() * 0.02
        while len(seen) <= after and process.poll() is None:
            seen |= names(output)
            threading.Event().wait(0.001)
        threading.Event().wait(then)
        process.send_signal(signal.SIGKILL)
        process.wait()
        unfinished += process.returncode == -signal.SIGKILL
        before = finished_parts(output)
        run_here(recipe, output, processes=1 + number % 2)
        assert content(output) == expected, number
        for tokens, inode in before.items():
            assert os.stat(tokens).st_ino == inode, (number, tokens)  # not written again
        kept += len(before)
    assert unfinished >= KILLS // 2 and kept >= KILLS
