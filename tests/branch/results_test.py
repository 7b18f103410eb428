# SPDX-License-Identifier: Apache-2.0
"""What is read of a job's folder, against rows written by hand."""

import json
import types

import pytest

from midjax.branch import results


def job(run_dir, *, steps=40, step=None):
    mixture = types.SimpleNamespace(names=("code", "prose"), seed=3)
    start = types.SimpleNamespace(run="trunk", parts={"params"})
    train = types.SimpleNamespace(
        run_dir=str(run_dir), start=start, data=types.SimpleNamespace(mixture=mixture)
    )
    return types.SimpleNamespace(
        name="a", train=train, from_step=8, from_tokens=800, steps=steps,
        tokens=100 * steps, done_step=step, finished=step == steps,
        rates=lambda: (0.5, 0.5 / steps),
    )  # fmt: skip


def write(run_dir, rows):
    run_dir.mkdir(exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run_dir / "metrics.jsonl").write_text(text + '{"torn')


def row(step, code, prose, lr=0.1, seconds=10.0):
    return {
        "step": step, "tokens": 100 * step, "lr": lr, "loss/code": code[0], "tokens/code": code[1],
        "loss/prose": prose[0], "tokens/prose": prose[1], "perf/step_seconds": seconds,
    }  # fmt: skip


def test_the_loss_is_that_of_the_last_twentieth_every_token_alike(tmp_path):
    """40 updates: the last two. (3 x 10 + 5 x 30 + 1 x 60) / 100 = 2.4."""
    rows = [row(s, (99.0, 7), (99.0, 7)) for s in range(1, 39)]
    rows += [row(39, (3.0, 10), (5.0, 30)), row(40, (None, 0), (1.0, 60), lr=0.025)]
    write(tmp_path / "a", rows)
    found = results.read(job(tmp_path / "a", step=40), None)
    assert found.loss == pytest.approx(2.4) and found.last_updates == 2
    assert found.loss_by_source == pytest.approx({"code": 3.0, "prose": 210 / 90})
    assert found.final_lr == 0.025 and found.state == "finished"


def test_states(tmp_path):
    waiting = results.read(job(tmp_path / "a"), None)
    assert (waiting.state, waiting.loss, waiting.final_lr) == ("waiting", None, None)
    write(tmp_path / "a", [row(20, (2.0, 1), (2.0, 1))])
    begun = results.read(job(tmp_path / "a", step=20), None)
    assert (begun.state, begun.step, begun.loss) == ("unfinished", 20, 2.0)
    failed = results.read(job(tmp_path / "a", step=20), "Error: it broke")
    results.write(str(tmp_path), [waiting, failed])
    assert results.errors(str(tmp_path)) == {"a": "Error: it broke"}
    assert results.errors(str(tmp_path / "none")) == {}
    lines = results.table([waiting, begun, failed]).splitlines()
    assert lines[0].split()[:3] == ["job", "from", "step"] and len(lines) == 4
    assert "waiting" in lines[1] and "at step 20" in lines[2] and "FAILED" in lines[3]


def test_the_list_says_what_it_costs_at_the_trunks_speed(tmp_path):
    """4,000 and 8,000 tokens at the median of 100 tokens in 10, 2 and 5 s: 200 and 400 s."""
    rows = [row(i, (1.0, 1), (1.0, 1), seconds=s) for i, s in enumerate((99.0, 10.0, 2.0, 5.0))]
    write(tmp_path / "trunk", rows)
    planned = {"a": job(tmp_path / "a"), "b": job(tmp_path / "b", steps=80)}
    lines = results.listing(planned, str(tmp_path / "trunk")).splitlines()
    assert lines[1].split()[:9] == ["a", "8", "800", "40", "4K", "0.5", "0.0125", "3", "3m20s"]
    assert "6m40s" in lines[2]
    assert lines[3].endswith(
        "12K tokens, 10m00s at the trunk's 20 tokens/s; 800 tokens less than as many runs from the "
        "beginning"
    )
    assert "?" in results.listing(planned, str(tmp_path / "none"))
