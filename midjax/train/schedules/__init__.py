# SPDX-License-Identifier: Apache-2.0
"""Learning rates: what a recipe says -> spans on the run's clock -> the rate of each update.

    phases    the recipe's classes: Schedule (warm-up, stable, decay) or Phases (any of them)
    clock     updates <-> tokens, through changes of the batch
    resolve   phases + clock + rate in force at the checkpoint -> curve.Curve; every number known
    curve     Curve: update's number -> rate; float64 for people and JSON, float32 inside jit
    table     the turning points and every 5 % as rows, for `midjax show schedule`

An update's number s, from 0, counts from the start of the schedule (`schedule_count` in a
checkpoint): kept when a run resumes, 0 when it anneals. What is given in steps is a function of s;
what is given in tokens is a function of the tokens before update s, whatever batches they came in.
"""
