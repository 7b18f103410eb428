# SPDX-License-Identifier: Apache-2.0
"""Optimizers: gradients -> directions, which the step multiplies by minus the learning rate.

    gradients -> clip by global norm -> the rule -> + weight decay -> direction
                                        |    ^
                                        v    |
                          state: moments by kind and path, and their age

    optimizer   the front: make, the state's layout, decay
    common      what every optimizer has around its rule; what a rule must say of its moments
    adamw, adafactor, lion, muon     one rule each: its numbers, its moments, its direction
    rules       patterns over parameter paths, of which each parameter matches exactly one
    matrices    which axes of a parameter make the matrix that Adafactor and Muon see
    carry       moments of one optimizer -> what another can take over, by name

The state is plain: {"moments": {kind: parameters' tree, of those that have it}, "adam_count"}, in a
checkpoint as in memory, so that what an optimizer finds there is found by path. Kinds:

    mu          mean of gradients: AdamW, Lion, Muon (for its own parameters and for AdamW's)
    nu          mean of squared gradients, uncorrected as mu: AdamW, and Muon for AdamW's parameters
    nu_row, nu_col, nu_full     Adafactor's means of squares: per row, per column, per number
    mu_update   Adafactor's mean of directions, not of gradients

There is no SOAP: Optax 0.2.8 has none.
"""
