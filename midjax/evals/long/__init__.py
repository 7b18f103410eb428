# SPDX-License-Identifier: Apache-2.0
"""Tasks at any length, made of real text: RULER's (2404.06654), exact to the token.

    token folder --haystack--> words of its documents --+
    seed, task, number --random.Random------------------+--> Draft: text of as many units as wanted
    SQuAD, HotpotQA --questions-------------------------+      |
                                                           lengths.fit: units, then characters
                                                               |
    engine <-- requests -- Prompt: BOS and text and room for the answer are row_tokens exactly
       |
       +--> answers --scores--> score and chance per task and length, effective length

run.py          `LongTasks`: checks, makes the prompts, asks, gives the numbers
tasks.py        RULER's tasks by name, how long their answers are, how they are scored
draft.py        a text that grows: what the modules of tasks make, and what `lengths` cuts to size
retrieval.py    needles: keys and values in noise, in real text, among others of their kind
tracking.py     chains of variables
aggregation.py  the most common words of a list, the most frequent ones of a coded text
questions.py    a question about one of many paragraphs
haystack.py     words and running text of a token folder
lengths.py      units and characters that give a number of tokens
scores.py       what was found, chance, rank among decoys, effective length

What differs from RULER's own program: words and essays are those of the token folder; a prompt
fills its length to the token; sample i is the same at every length but for its filling, whatever
else is asked; no other value, word or paragraph holds an answer; the example before `vt` grows with
the length up to RULER's 500 tokens.

`needle.py` is another measure: rows of ids on a grid of depths, with and without the line that
tells the key, split over a mesh's `context`. Here a sample is a text that any engine can be asked.
"""
