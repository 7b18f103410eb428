# SPDX-License-Identifier: Apache-2.0
"""Named sources -> one order of rows.

weights.py   shares from counts: temperature, UniMax
stages.py    what a recipe says: Stage, Mixture; stages in rows, shares of tokens
solve.py     caps met by shifting the rest
spread.py    shares -> counts of each block and prefix, within one row
segments.py  stages --caps, counts--> segments in which any block is computed by itself
order.py     Order[global row] = (source, row of that source): a pure function, not a state
plan.py      what the order draws, as a table
"""
