# SPDX-License-Identifier: Apache-2.0
"""The run. Read `loop.py` first.

recipe.py --prepare.py--> Prepared --restore.py--> TrainState --step.py--> TrainState, metrics
             |    start.py: what each part starts from
             |    continuity.py: what must agree with it
             +--- schedules/ (step -> learning rate) and optimizers/ (gradients -> direction)

TrainState --evaluate.py--> run/eval/, evals.jsonl, gates that end the run (evaluation.py: asked)
metrics, batch --metrics.py, speed.py--> rows of metrics.jsonl --> trackers
goodput.py, sessions.py: where the time went, of this process and of those before
"""
