# SPDX-License-Identifier: Apache-2.0
"""Averages of checkpoints: several trained models of one shape -> one, without training.

    methods: which checkpoints, which weights
      |  ingredients: read their JSON, check that they are one model with one tokenizer
      v
    merge: leaf after leaf, sum in float64 -> params on the mesh    greedy: whom to take, by a score
      |
      v  recipe
    a run directory, as an import writes it: eval, export and Start.run (kind "weights") read it

Who does it: Llama 3 averages checkpoints of its anneal (2407.21783, 3.4.3), OLMo 2 soups three or
four anneals that differ in their seed (2501.00656), OLMo 3 32B the last three checkpoints of its
long-context stage (2512.13961). The mean of N equally spaced checkpoints of a stable phase is what
the newest would be, had the updates after the oldest been scaled by (N - 1)/N, ..., 1/N: merging
stands in for a linear decay, and other weights for other decays (WSM, 2507.17634).
"""
