# SPDX-License-Identifier: Apache-2.0
"""Runs of `midjax train` for train_speed.py: (figure, ours, peer, target, met) of each.

Their time by the clock counts, so the machine should be quiet.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

STEPS = pathlib.Path(__file__).parent / "train_steps"
FOLDER = pathlib.Path("build/bench/train")
MOST_OF_STEP, MOST_AFTER_SAVE, COLD_SECONDS, WARM_SECONDS = 0.02, 1.2, 20, 8
COLD_STARTS, WARM_STARTS = 3, 3
# Of the demo's pretraining, whose warm-up takes 30 steps.
UPDATES, BATCH_TOKENS = 32, 1024

Figure = tuple[str, float, float | None, str, bool]


def looping() -> Iterator[Figure]:
    """What the loop costs beside its step, what saves delay, and what is compiled late."""
    found = _script("loop_cost.py", "tiny", "cost")
    own, bare = found["own"] * 1000, found["bare"] * 1000
    yield (
        "tiny: CPU ms of the loop per step; of the bare step", round(own, 2), round(bare, 1),
        f"<= {MOST_OF_STEP}x", own <= MOST_OF_STEP * bare,
    )  # fmt: skip
    found = _script("loop_cost.py", "tiny", "saves")
    after, median = found["after"], found["median"]
    yield (
        "tiny: seconds of the step after a save; of the median step", round(after, 3),
        round(median, 3), f"<= {MOST_AFTER_SAVE}x", after <= MOST_AFTER_SAVE * median,
    )  # fmt: skip
    late = int(found["compiled_late"])
    yield "tiny: programs compiled after the second step", late, None, "0", late == 0


def starting() -> Iterator[Figure]:
    """From the start of `midjax train` to its first finished update, the demo's pretraining."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    tokens = pathlib.Path("build/demo/tokens")
    if not (tokens / "prose" / "manifest.json").exists():
        _midjax("tokenize", "--gin_file=gin/recipes/demo_tokenize.gin").wait()
    cold = _first_update()
    what = "seconds from start to the first update, the demo's model"
    yield (
        f"{what}: nothing compiled",
        round(cold, 2),
        None,
        f"< {COLD_SECONDS}",
        cold < COLD_SECONDS,
    )
    warm = min(_first_update() for _ in range(WARM_STARTS))
    yield f"{what}: programs kept", round(warm, 2), None, f"< {WARM_SECONDS}", warm < WARM_SECONDS


def beside_maxtext(python: str, most: float) -> Iterator[Figure]:
    """Seconds from the start of a process to the first update, on this CPU, nothing compiled.

    Both start in turn, and the fastest of each counts: the first start of all reads its libraries
    from the disk. Ours is `midjax train` itself, the demo's pretraining with its data and
    checkpoints. MaxText's is the set-up and step of its trainer with a model and batch of the same
    size and synthetic data: its own command waits minutes for servers where there is no network.
    """
    ours, theirs = [], []
    for _ in range(COLD_STARTS):
        ours.append(next(starting())[1])
        theirs.append(_maxtexts_first_update(python))
    what = "seconds from start to the first update on a CPU, nothing compiled"
    known = [seconds for seconds in theirs if seconds is not None]
    if not known:
        yield f"{what}: MaxText's script failed", min(ours), None, f"<= {most}x", False
        return
    mine, other = min(ours), round(min(known), 2)
    yield what, mine, other, f"<= {most}x", mine <= most * other


def _maxtexts_first_update(python: str) -> float | None:
    """Seconds; None where it fails."""
    begin = time.monotonic()
    process = subprocess.Popen(
        [python, str(STEPS / "maxtext_step.py"), "demo"],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    told = any(line.startswith("RESULT") for line in process.stdout)
    seconds = time.monotonic() - begin
    process.kill()
    process.wait()
    return seconds if told else None


def _first_update() -> float:
    """Seconds until there is a row of metrics: it is written once the second update was sent off.

    The run then ends by itself, so that what it compiled is kept whole.
    """
    run_dir = FOLDER / "start"
    shutil.rmtree(run_dir, ignore_errors=True)
    rows, begin = run_dir / "metrics.jsonl", time.monotonic()
    process = _midjax(
        "train", "--gin_file=gin/recipes/demo_pretrain.gin", f"--gin.Train.run_dir={run_dir}",
        f"--gin.Train.train_tokens={UPDATES * BATCH_TOKENS}",
        f"--gin.Train.compilation_cache={FOLDER / 'compiled'}",
    )  # fmt: skip
    while not (rows.exists() and rows.stat().st_size):
        if process.poll() not in (None, 0):
            raise RuntimeError(f"midjax train ended with exit code {process.returncode}")
        time.sleep(0.02)
    seconds = time.monotonic() - begin
    if process.wait():
        raise RuntimeError(f"midjax train ended with exit code {process.returncode}")
    return seconds


def _midjax(*arguments: str) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    return subprocess.Popen(
        [sys.executable, "-m", "midjax", *arguments],
        env=environment | {"JAX_PLATFORMS": "cpu"}, stdout=subprocess.DEVNULL,
    )  # fmt: skip


def _script(name: str, *arguments: str) -> dict[str, float]:
    """A script of train_steps/, with nothing compiled before."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, str(STEPS / name), *arguments],
        env=environment | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "RESULT" not in done.stdout:
        raise RuntimeError(f"{name} {' '.join(arguments)}: {done.stderr[-3000:]}")
    return json.loads(done.stdout.split("RESULT")[1])
