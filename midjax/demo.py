# SPDX-License-Identifier: Apache-2.0
"""The verb `demo`: the main job of midjax as a list of ordinary commands, run one after another."""

import argparse
import shlex
import shutil
import time
from collections.abc import Callable, Sequence

from midjax import files, log, units

# Where the recipes of the demo put what they make, below the working folder.
OUTPUT = "build/demo"
# A model that others pretrained, for the last act.
STORIES = f"{OUTPUT}/stories260K"


class StepError(ValueError):
    """A command of the demo failed.

    Attributes:
      exit_code: its own.
    """

    def __init__(self, what: str, exit_code: int) -> None:
        super().__init__(what)
        self.exit_code = exit_code


def commands() -> list[tuple[str, list[str]]]:
    """(why, command line without `midjax`) of every step, in order."""

    def verb(name: str, recipe: str, **overrides: str) -> list[str]:
        line = [name, f"--gin_file=recipes/{recipe}.gin"]
        return line + [f"--gin.{key.replace('__', '.')}={v}" for key, v in overrides.items()]

    def evaluate(name: str, run: str) -> list[str]:
        return verb("eval", "demo_eval", Eval__name=name, Eval__run=f"{OUTPUT}/{run}")

    def stories(name: str, run: str, *more: str) -> list[str]:
        line = verb("eval", "demo_stories_eval", Eval__name=name, Eval__run=f"{OUTPUT}/{run}")
        return [*line, *more]

    against = f"--against={STORIES}"
    return [
        ("text -> tokens", verb("tokenize", "demo_tokenize")),
        ("pretrain: warm-up and the stable phase", verb("train", "demo_pretrain")),
        ("mid-train: anneal on the mixture, two stages", verb("train", "demo_midtrain")),
        ("mid-train: context 4x with YaRN", verb("train", "demo_extend")),
        ("control: the same anneal on pretraining data", verb("train", "demo_control")),
        ("control: the same extension", verb("train", "demo_control_extend")),
        ("evaluate before", evaluate("before", "pretrain")),
        ("evaluate control", evaluate("control", "control_extend")),
        ("evaluate after", evaluate("after", "extend")),
        ("export for Hugging Face and compare logits", verb("export", "demo_export")),
        ("report", verb("report", "demo_report")),
        ("import a pretrained model", verb("import", "import_llama2c", Import__output=STORIES)),
        ("text -> its tokens", verb("tokenize", "demo_stories_tokenize")),
        ("mid-train it: from weights, 60 updates", verb("train", "demo_stories")),
        ("evaluate it before", stories("before", "stories260K")),
        ("evaluate it after, and against before", stories("after", "stories", against)),
        ("report on it", verb("report", "demo_stories_report")),
    ]


def _is_imported() -> bool:
    """Whether the import was finished; what an interrupted one left is removed.

    An import takes no folder that holds checkpoints.
    """
    place = files.path(STORIES)
    if (place / "model.gin").exists():  # written last
        return True
    if place.exists():
        shutil.rmtree(place)
    return False


def run(arguments: Sequence[str], main: Callable[[Sequence[str]], int]) -> None:
    """Runs every command through `main`.

    Raises:
      StepError: a command failed; it has said why.
    """
    parser = argparse.ArgumentParser(prog="midjax demo", exit_on_error=False, add_help=False)
    parser.add_argument("--fresh", action="store_true")
    options, unknown = parser.parse_known_args(list(arguments))
    if unknown:
        raise ValueError(f"unknown arguments {unknown}; demo takes --fresh")
    root = files.path(OUTPUT)
    if options.fresh and root.exists():
        shutil.rmtree(root)
    elif root.exists():
        log.say(f"{root} exists: what is finished there is kept (--fresh starts over)")
    begin = time.monotonic()
    steps = commands()
    for number, (why, line) in enumerate(steps, 1):
        log.say(f"\n[{number}/{len(steps)}] {why}\n$ midjax {shlex.join(line)}")
        if line[0] == "import" and _is_imported():
            log.say(f"{STORIES} is there, kept")
        elif code := main(line):
            raise StepError(f"step {number} ({why}) failed; see the message above", code)
    seconds = units.human_seconds(time.monotonic() - begin)
    log.say(
        f"\n{root}/report.html is the report, {root}/stories.html that of stories260K; the demo "
        f"took {seconds}"
    )
