# SPDX-License-Identifier: Apache-2.0
"""Google Cloud as `midjax launch` sees it: records every command and plays a short history.

`history` is what happens while the launcher waits: one function of the cloud for each sleep.
"""

import json
from collections.abc import Callable

from midjax.launch import runner, spec

MISSING = runner.Done(code=1, err="ERROR: NOT_FOUND: the resource was not found")
NO_OBJECT = runner.Done(code=1, err="ERROR: The following URLs matched no objects or files")
PRESENT = "gcloud kubectl"


def launch(**changes) -> spec.Launch:
    fields = {
        "name": "anneal",
        "recipe": "gin/recipes/demo_midtrain.gin",
        "slice": "v5e-16",
        "zone": "us-west4-a",
        "project": "my-project",
        "bucket": "gs://my-bucket/runs",
        "spot": True,
        "poll_seconds": 60.0,
        "silent_seconds": 900.0,
    }
    return spec.Launch(**{**fields, **changes})


def on_gke(**changes) -> spec.Launch:
    return launch(
        **{
            "backend": "gke",
            "cluster": "tpus",
            "image": "us-docker.pkg.dev/p/r/midjax:1",
            **changes,
        }
    )


class Cloud:
    def __init__(self, history: list[Callable[["Cloud"], None]] = [], present=PRESENT) -> None:  # noqa: B006
        self.calls: list[list[str]] = []
        self.said: list[str] = []
        self.resource: dict | None = None
        self.reports: dict[int, str] = {}
        self.objects: set[str] = set()
        self.location = "US-WEST4"
        self.jobset: dict = {}
        self.now = 1_000_000.0
        self.answers: list[tuple[str, runner.Done]] = []
        self.history, self._present = list(history), present.split()

    # ---- what the launcher calls ----

    def has(self, program: str) -> bool:
        return program in self._present

    def run(self, argv) -> runner.Done:
        argv = list(argv)
        self.calls.append(argv)
        for i, (part, answer) in enumerate(self.answers):
            if part in " ".join(argv):
                del self.answers[i]
                return answer
        words = [word for word in argv if not word.startswith("-")]
        if argv[:4] == ["gcloud", "compute", "tpus", "queued-resources"]:
            return self._queued(argv[4], argv)
        if words[:3] == ["gcloud", "storage", "cp"]:
            *sources, target = words[3:]
            for source in sources:
                name = source.rpartition("/")[2] if target.endswith("/") else ""
                self.objects.add(target + name)
        if words[:3] == ["gcloud", "storage", "cat"]:
            return self._cat(words[3])
        if words[:3] == ["gcloud", "storage", "ls"]:
            found = sorted(o for o in self.objects if o.startswith(words[3]))
            parts = [o.removeprefix(words[3]).partition("/") for o in found]
            folders = sorted({words[3] + name + slash for name, slash, _ in parts})
            return runner.Done(code=0, out="\n".join(folders)) if folders else NO_OBJECT
        if words[:4] == ["gcloud", "storage", "buckets", "describe"]:
            return runner.Done(code=0, out=self.location + "\n")
        if words[:2] == ["kubectl", "get"]:
            return runner.Done(code=0, out=json.dumps(self.jobset)) if self.jobset else MISSING
        return runner.Done(code=0)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if not self.history:
            raise AssertionError(f"waits for ever; calls so far: {self.lines()}")
        self.history.pop(0)(self)

    def clock(self) -> float:
        return self.now

    # ---- what happens ----

    def set(self, state: str) -> None:
        assert self.resource is not None, "there is none"
        self.resource["state"] = {"state": state}

    def report(self, attempt: int, state: str, code: int | None = None) -> None:
        seen = {"state": state, "code": code, "attempt": attempt, "seen": self.now}
        self.reports[attempt] = json.dumps(seen)

    def lines(self, *parts: str) -> list[str]:
        """Calls as text, those with one of the parts, or all."""
        text = [" ".join(argv) for argv in self.calls]
        return [line for line in text if not parts or any(part in line for part in parts)]

    def _queued(self, verb: str, argv: list[str]) -> runner.Done:
        if verb == "create":
            flags = dict(word.partition("=")[::2] for word in argv if word.startswith("--"))
            labels = dict(pair.split("=") for pair in flags["--labels"].split(","))
            node = {"node": {"labels": labels}}
            self.resource = {"tpu": {"nodeSpec": [node]}, "state": {"state": "ACCEPTED"}}
        elif self.resource is None:
            return MISSING
        elif verb == "describe":
            return runner.Done(code=0, out=json.dumps(self.resource))
        elif verb == "delete":
            self.resource = None
        return runner.Done(code=0)

    def _cat(self, place: str) -> runner.Done:
        name = place.rpartition("/")[2].removesuffix(".json")
        if "/exit/" in place and name.isdigit() and int(name) in self.reports:
            return runner.Done(code=0, out=self.reports[int(name)])
        if place in self.objects:
            return runner.Done(code=0, out="{}")
        if "/logs/" in place:
            return runner.Done(code=0, out=f"the log {place}")
        return NO_OBJECT
