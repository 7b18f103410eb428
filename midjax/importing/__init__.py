# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of others -> run directories that a run can begin from, optimizer state included.

    maxtext, llama2c, huggingface --open--> convert.Foreign --convert.write--> output/
                                                              checkpoints/<step>/, tokenizer/

A format that is not here is one function that returns a `convert.Foreign`.
"""
