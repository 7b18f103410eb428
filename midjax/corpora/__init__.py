# SPDX-License-Identifier: Apache-2.0
"""Bytes -> `Document`.

    a reader of sources.Reader     unit: a file or a range of one     of formats, chat, fim
      .units() ---------> [Unit] ---- .records ---> fields by name ---- format ---> Document
                                          |                                |
                                          +---- drops, by reason ----------+----> Tally, budget

text: JSON lines and plain text. parquet. array_record. arrow: what Hugging Face datasets saved.
tfds. seqio: Tasks, which give tokens, and Mixtures of them. No module here imports jax, and only
reading a seqio source imports TensorFlow.
"""
