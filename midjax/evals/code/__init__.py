# SPDX-License-Identifier: Apache-2.0
"""Code tasks: a document and what the model wrote -> a program that the sandbox judges.

    text --extract--> code --programs--> Program(solution | tests) --sandbox--> Verdict

Which public task stands for the names in the survey of mid-training:

HumanEval, HumanEval-NL   HumanEval (Chen et al. 2021, 2107.03374): its prompt is a signature and a
                          docstring in natural language, which is what NL is taken to mean
MBPP                      MBPP (Austin et al. 2021, 2108.07732), the full or the sanitized set
infilling                 HumanEval Infilling (Bavarian et al. 2022, 2207.14255): single line,
                          several lines, random span
Code-Fix                  HumanEvalFix of HumanEvalPack (Muennighoff et al. 2023, 2308.07124), in
                          Python
Code-Reasoning            CRUXEval (Gu et al. 2024, 2401.03065): predict the output (-O), or an
                          input for an output (-I)

HumanEval-NL, Code-Fix and Code-Reasoning are no names of data sets: this table is our reading, and
results should be reported under the name of the public task.
"""
