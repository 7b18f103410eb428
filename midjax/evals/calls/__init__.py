# SPDX-License-Identifier: Apache-2.0
"""Function calling: what a model wrote -> calls -> do they match the answers? Nothing is run.

    text --parse--> calls --match(functions, answers)--> why not, or nothing

The form of the Berkeley Function Calling Leaderboard (BFCL, Patil et al. 2025) for Python: simple,
multiple, parallel, parallel multiple, irrelevance. Left out: its Java and JavaScript values, the
executable, multi-turn and live-service categories.
"""
