# SPDX-License-Identifier: Apache-2.0
"""Answers -> numbers, each as its authors define it.

    instances, answers --scoring.score--> {"metrics": {title: mean}, "per_instance": {title: [...]}}

names.py     which metrics there are
scoring.py   of a task: per instance, mean, per subset, macro; of a group
choices.py   accuracies of ranked choices under each normalisation; bits per byte
texts.py     filters; exact match as lm_eval's; SQuAD's F1
drop.py      DROP's exact match and F1
rouge.py     ROUGE-1, 2 and L
maths.py     equality of answers to MATH, by math-verify
passing.py   pass@k
"""
