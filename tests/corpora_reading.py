# SPDX-License-Identifier: Apache-2.0
"""What the tests of readers share."""

from midjax.corpora import formats, reading

FACTS = formats.TokenizerFacts(
    special_tokens=frozenset({"<|end|>"}), bos_token=None, eos_token="<|end|>", chat_template=None
)
TEXT = formats.Text(field="text")


def read(reader, source="s", facts=FACTS):
    """All documents of a reader, and the tally over its units, as tokenizing counts it."""
    total, documents = reading.Tally(), []
    for unit in reader.units():
        tally = reading.Tally()
        documents += reader.documents(source, unit, tally, facts)
        total.add(reading.Tally.from_json(tally.to_json()))
    return documents, total


def pairs(documents):
    """(id, text) of each."""
    return [(document.id, document.text) for document in documents]
