# SPDX-License-Identifier: Apache-2.0
"""The run. Read `loop.py` first.

start.py (what the state starts from) -> TrainState --step.py--> TrainState, metrics
schedule.py (step -> learning rate) -> optimizer.py (the Optax chain) ----^
"""
