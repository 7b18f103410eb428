# SPDX-License-Identifier: Apache-2.0
"""Named sources -> one order of rows.

stages of weights --largest remainder--> a pattern of sources --shuffled in blocks--> Order
Order[global row] = (source, row of that source)          a pure function; nothing to checkpoint
"""
