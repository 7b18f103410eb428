# SPDX-License-Identifier: Apache-2.0
"""Rows of metrics, sent on to other programs: TensorBoard, wandb, trackio.

    rows of the loop --put--> a queue and a thread for each tracker --> tools.TensorBoard, ...

    tools.py  what each program is called with; imported only when a recipe asks for it
    sink.py   threads, queues and counts: nothing a tracker does stops or delays the run

`metrics.jsonl` and `events.jsonl` are written always, by `log.Journal`, and hold more.
"""
