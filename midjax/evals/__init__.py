# SPDX-License-Identifier: Apache-2.0
"""Params and held-out token folders -> one JSON file of numbers that the report reads.

token folder of a domain --plan "concat"--> rows --model--> nats of each target
                                                               |-- per domain:  bits per byte
token folder of long documents --plan "whole"--> rows --model--+-- per position: nats per token

keys hidden in haystacks --> rows --model--> accuracy and nats of the keys

prompts --tokenizer--> padded buffer --model, token by token--> continuations

a model's code --code--> programs --sandbox--> verdicts
a model's function calls --calls--> right, or why not

loss.py      bits per byte and loss by position, each defined by a formula in its docstring
needle.py    pass keys in long text, with and without the line that tells them
generate.py  greedy or seeded sampling
sandbox/     runs model-written code behind walls that were tested, or refuses
code/        HumanEval, MBPP, infilling, HumanEvalFix, CRUXEval: text -> program to judge
calls/       function calling, as BFCL matches it
run.py       the root `Eval`: checks, computes, writes run/eval/<name>.json
"""
