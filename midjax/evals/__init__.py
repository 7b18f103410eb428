# SPDX-License-Identifier: Apache-2.0
"""Params, held-out token folders and tasks -> one JSON file of numbers that the report reads.

token folder of a domain --plan "concat"--> rows --model--> nats of each target
                                                               |-- per domain:  bits per byte
token folder of long documents --plan "whole"--> rows --model--+-- per position: nats per token

keys hidden in haystacks --> rows --model--> accuracy and nats of the keys

requests --tokenizer--> prompts --model with a cache, chunks of tokens--> continuations

a model's code --code--> programs --sandbox--> verdicts
a model's function calls --calls--> right, or why not

tasks/NAME.toml --task--> Task --+
data folder --task_data--> documents --render--> instances --Engine--> answers
                                                 instances + answers --metrics.scoring--> scores

suite does all of it for many tasks, in `midjax eval`; in Python

    task = tasks.load("arc_easy_rc")                       or the path of a file of your own
    instances = render.prepare(task, folder)               or render.instances(task, documents)
    answers = render.ask(engine, instances)                engine: requests.Engine
    scoring.score(task, instances, answers, judge=...)     judge: judges.of(task, sandbox), of code
                                                           and function calls only

loss.py      bits per byte and loss by position, each defined by a formula in its docstring
needle.py    pass keys in long text, with and without the line that tells them
long/        RULER's tasks, at any length to the token, from real text
generate.py  requests for continuations: texts in, texts out, cut at stop texts
engine.py    all that tasks ask of a model
likelihood.py  how likely texts are: likelihood_tokens.py tokenizes them as lm_eval does,
             likelihood_plan.py finds what they share, which is computed once
batcher.py   many continuations at once: packed prompts, a cache, rows filled anew as they end;
             batch_steps.py what the devices compute of it
packing.py   prompts of different lengths end to end
sampling.py  the next token from its logits: greedy, temperature, top-p
sandbox/     runs model-written code behind walls that were tested, or refuses
code/        HumanEval, MBPP, infilling, HumanEvalFix, CRUXEval: text -> program to judge
calls/       function calling, as BFCL matches it
agents/      episodes: AgentBench's shell tasks in the sandbox, ToolBench on recorded replies
requests.py  what a task asks of a model, and what the model answers
tasks/       a file per task: where its data are, prompt, choices, gold answer, metrics, shots
task.py      loads such a file, strictly; task_parts.py its tables, template.py its templates
task_data.py the documents, from the user's disk in their public form
examples.py  which documents stand before a question
render.py    documents and examples -> requests, byte for byte as OLMES and lm_eval ask them
metrics/     answers -> numbers, as their authors define them
judges.py    completions of code and function calls -> right or wrong
suite.py     many tasks asked of one model; task_rows.py a line for each of their documents
recipe.py    the root `Eval`
run.py       checks, computes, writes run/eval/<name>.json; table.py prints it
record.py    a line per evaluation in run/evals.jsonl
compare.py   a result against its parent's: deltas, retention, gates; pairing.py the documents of
             both, bootstrap.py intervals by resampling them
"""
