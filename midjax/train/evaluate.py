# SPDX-License-Identifier: Apache-2.0
"""Evaluations inside of a run: on its mesh, of the parameters as they lie there, without a copy.

    recipe --check--> Evaluator
    the run's start --measure--> run/eval/NAME-start.json --+
    update n ---------measure--> run/eval/NAME-n.json ------+--compare, gates--> ForgottenError,
                                 a line of run/evals.jsonl                       exit code 6

What an update computes does not depend on it. A line is there before the checkpoint of its update
is, and lines after the checkpoint that a run goes on from are taken away when it does, so that the
file has each evaluation once. One that was due at that checkpoint and is missing, as when SIGTERM
ended it between two batches, is made up for.

Where a gate fails the run saves, says what was lost, and ends. The same command ends again, until
the gate or the run is another one.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from midjax import files, log
from midjax.distributed import group
from midjax.evals import compare, pairing, record
from midjax.evals import recipe as eval_recipe
from midjax.evals import run as run_lib
from midjax.train import evaluation as evaluation_lib
from midjax.train import prepare as prepare_lib

START = "start"
Between = Callable[[], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Asked:
    """An evaluation whose inputs were checked, and where its results go."""

    evaluation: evaluation_lib.Evaluation
    config: eval_recipe.Eval
    inputs: run_lib.Inputs

    def path(self, at: int | str) -> Any:
        return files.path(str(self.config.run)) / "eval" / f"{self.stem(at)}.json"

    def stem(self, at: int | str) -> str:
        return f"{self.evaluation.name}-{at}"

    @property
    def parent(self) -> Any:
        return files.path(self.evaluation.parent) if self.evaluation.parent else self.path(START)


class Evaluator:
    """The evaluations of a run. Made once it is prepared; nothing has been written then.

    Raises:
      what `run.check` raises; ValueError: two have one name, a gate names no score, or it has
        nothing to compare with.
    """

    def __init__(self, prepared: prepare_lib.Prepared, mesh: jax.sharding.Mesh) -> None:
        self._prepared, self._mesh = prepared, mesh
        # How a run trains, not what its parameters are.
        self._model = dataclasses.replace(prepared.config.model, quantization=None)
        names = [one.name for one in prepared.config.evaluations]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"Train.evaluations has the name {repeated[0]!r} more than once.")
        self._asked = [self._check(one) for one in prepared.config.evaluations]
        self._failed: list[str] = []

    def _check(self, evaluation: evaluation_lib.Evaluation) -> _Asked:
        train = self._prepared.config
        parts = [field.name for field in dataclasses.fields(eval_recipe.Parts)]
        config = eval_recipe.Eval(
            run=train.run_dir,
            mesh=train.mesh,
            **{name: getattr(evaluation, name) for name in ("name", "tokenizer", *parts)},
        )
        known = self._prepared.opened.tokenizer_hash
        inputs = run_lib.check(config, self._model, self._mesh, tokenizer_hash=known)
        asked = _Asked(evaluation=evaluation, config=config, inputs=inputs)
        if evaluation.comparison.gates:
            self._check_gates(asked)
        return asked

    def _check_gates(self, asked: _Asked) -> None:
        """That the gates' names are scores, and the parent's result can be compared with."""
        evaluation, origin = asked.evaluation, self._prepared.origin
        known = run_lib.expected(asked.config, self._model, asked.inputs)
        compare.check_names(pairing.scores_of(known), evaluation.comparison)
        is_there = origin.kind == "own" and asked.parent.exists()
        if evaluation.parent is not None or is_there:
            pairing.check(pairing.read(asked.parent), known)  # which says if it is not there
            return
        if origin.kind not in ("own", "fresh"):
            return
        why = (
            "starts fresh, with nothing to forget"
            if origin.kind == "fresh"
            else f"began without it: {asked.parent} is missing"
        )
        raise ValueError(
            f"Evaluation {evaluation.name!r} has gates against the run's start, and the run {why}. "
            "Name a result of `midjax eval` in Evaluation.parent."
        )

    def settle(self) -> None:
        """Takes away lines of updates that will be done again, and ends where a gate had failed.

        Raises:
          compare.ForgottenError: at the checkpoint that the run would go on from.
        """
        if not self._asked:
            return
        step, own = self._prepared.first_step, self._prepared.origin.kind == "own"
        names = [asked.evaluation.name for asked in self._asked]
        after = step if own else step - 1
        group.first(
            "settling evaluations", record.remove_after, self._prepared.config.run_dir, names, after
        )
        if not own:
            return
        for asked in self._asked:
            gated = asked.evaluation.comparison.gates
            if gated and self._is_due(asked, step) and self._is_there(asked, step):
                told = group.first("reading an evaluation", lambda a=asked: _again(a, step))
                self._failed += told["failures"]
        if self._failed:
            raise self._error(step)

    def begin(self, params: Any, journal: log.Journal, between: Between) -> None:
        """Measures the run's start; of a run that goes on, what was due there and is missing.

        Args:
          between: see `evals.run.run`; what it raises leaves an evaluation to be made up for.
        """
        step, kind = self._prepared.first_step, self._prepared.origin.kind
        for asked in self._asked:
            if kind == "own" and self._is_due(asked, step) and not self._is_there(asked, step):
                self._measure(asked, step, step, params, journal, between)
            elif kind not in ("own", "fresh"):
                self._measure(asked, step, START, params, journal, between)

    def after(self, step: int, params: Any, journal: log.Journal, between: Between) -> bool:
        """Measures what is due after an update; whether a gate failed. `between` as of `begin`."""
        for asked in self._asked:
            if self._is_due(asked, step):
                self._measure(asked, step, step, params, journal, between)
        return bool(self._failed)

    def is_due(self, step: int) -> bool:
        """Whether anything is to be measured after an update."""
        return any(self._is_due(asked, step) for asked in self._asked)

    def end_if_failed(self, step: int, journal: log.Journal, wait: Callable[[], None]) -> None:
        """Ends the run where a gate failed.

        Args:
          step: is being saved.
          wait: until that is done.

        Raises:
          compare.ForgottenError: on all processes.
        """
        if self._failed:
            wait()
            for sentence in self._failed:
                journal.event("gate_failed", step=step, what=sentence)
            raise self._error(step)

    def _error(self, step: int) -> compare.ForgottenError:
        listed = "\n  ".join(self._failed)
        is_new = step == self._prepared.first_step and self._prepared.origin.kind != "own"
        where = "before its first update" if is_new else f"by step {step}, which is saved"
        return compare.ForgottenError(
            f"{self._prepared.config.run_dir} has forgotten more than its gates allow, {where}:\n"
            f"  {listed}\n"
            "Change the mixture or the learning rate and start anew from the parent, or widen the "
            "gate (Gate.largest_loss) and the same command goes on."
        )

    def _is_due(self, asked: _Asked, step: int) -> bool:
        return step % asked.evaluation.every_steps == 0 or step == self._prepared.total_steps

    def _is_there(self, asked: _Asked, step: int) -> bool:
        def look() -> bool:
            lines = record.read(self._prepared.config.run_dir)
            known = {(line["name"], line["step"]) for line in lines}
            return (asked.evaluation.name, step) in known and asked.path(step).exists()

        return bool(group.first("looking for an evaluation", look))

    def _measure(
        self,
        asked: _Asked,
        step: int,
        at: int | str,
        params: Any,
        journal: log.Journal,
        between: Between,
    ) -> None:
        began = time.monotonic()
        found = run_lib.run(
            asked.config,
            self._model,
            params,
            step,
            self._mesh,
            inputs=asked.inputs,
            between=between,
        )
        scores, failures = record.scores(found), []
        if asked.evaluation.comparison.gates:
            told = group.first("comparing with the parent", _judged, asked, at, found)
            scores |= {compare.RETENTION: told[compare.RETENTION]}
            failures = told["failures"]
        run_lib.write(found, stem=asked.stem(at), scores=scores)
        self._failed += failures
        seconds, name = round(time.monotonic() - began, 3), asked.evaluation.name
        journal.event("evaluated", step=step, name=name, seconds=seconds)
        numbers = ", ".join(
            f"{score} {'not finite' if value is None else f'{value:.4f}'}"
            for score, value in scores.items()
        )
        log.say(f"step {step}, {name}: {numbers}")


def _judged(asked: _Asked, at: int | str, found: Mapping[str, Any]) -> dict[str, Any]:
    """Compares a new result with the parent's; the newest comparison stays beside the results."""
    now = pairing.of(found, asked.path(at))
    is_parent = at == START and not asked.evaluation.parent
    parent = now if is_parent else pairing.read(asked.parent)
    compared = compare.compare(parent, now, asked.evaluation.comparison)
    files.write_json(compare.path(str(asked.config.run), asked.evaluation.name), compared)
    return _told(compared)


def _again(asked: _Asked, step: int) -> dict[str, Any]:
    """What `_judged` said of a result, by the gates as they are now."""
    parent, now = pairing.read(asked.parent), pairing.read(asked.path(step))
    return _told(compare.compare(parent, now, asked.evaluation.comparison))


def _told(compared: Mapping[str, Any]) -> dict[str, Any]:
    retention = compared[compare.RETENTION]["value"]
    return {"failures": compare.failures(compared), compare.RETENTION: retention}
