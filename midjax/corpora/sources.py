# SPDX-License-Identifier: Apache-2.0
"""All the kinds of sources, as the annotation of a recipe's field.

Every `Reader` has `units()`, `documents(source, unit, tally, facts)`, `max_bad_records` and
`tokenized`. A `SeqioMixture` stands for the several readers that its `tasks()` are.
"""

from midjax.corpora import array_record, arrow, parquet, seqio, text, tfds

Reader = (
    text.JsonLines
    | text.PlainText
    | parquet.Parquet
    | array_record.ArrayRecord
    | arrow.HuggingFaceDisk
    | tfds.Tfds
    | seqio.SeqioTask
)
Source = Reader | seqio.SeqioMixture
