# SPDX-License-Identifier: Apache-2.0
"""midjax: mid-training of language models in JAX.

The tree is the data flow:

    corpora -> mixture -> batches -> train (model) -> checkpoint -> evals -> export -> report
"""

__version__ = "0.1.0"
