# SPDX-License-Identifier: Apache-2.0
"""gin/corpora against records with the fields that those corpora have, in files of their kinds."""

import gzip
import importlib.resources.abc
import json
import sys

import corpora_reading as reader
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from midjax import config
from midjax.corpora import formats

RECIPE = "gin/recipes/tokenize_corpora.gin"
CORPORA = sorted(path for path in (config.gin_root() / "corpora").glob("*.gin"))
FACTS = formats.TokenizerFacts(
    special_tokens=frozenset({"<|im_start|>", "<|im_end|>"}),
    bos_token=None,
    eos_token="<|im_end|>",
    chat_template=(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
)
MESSAGES = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
# name -> (a record, its text, what of it bears loss).
RECORDS = {
    "c4": (
        {"text": "A page.", "timestamp": "2019-04-25T12:57:54Z", "url": "https://example.org/"},
        "A page.", None,
    ),
    "pile": ({"text": "A text.", "meta": {"pile_set_name": "Pile-CC"}}, "A text.", None),
    "wikipedia": (
        {"id": "12", "url": "https://example.org/", "title": "Anarchism", "text": "It is."},
        "Anarchism\n\nIt is.", None,
    ),
    "flan": ({"id": "f-1", "text": "Q\nA", "source": "flan"}, "Q\nA", None),
    "gsm8k": (
        {"question": "2+2?", "answer": "2+2=4\n#### 4"}, "Question: 2+2?\nAnswer: 2+2=4\n#### 4",
        None,
    ),
    "natural_questions": (
        {"question": "who wrote it", "answer": ["Ada", "Lovelace"]},
        "Question: who wrote it?\nAnswer: Ada", ["Ada"],
    ),
    "trivia_qa": (
        {"question": "Which?", "question_id": "tc_1", "question_source": "x",
         "answer": {"value": "This", "aliases": ["This", "That"]}},
        "Question: Which?\nAnswer: This", ["This"],
    ),
    "tulu3": (
        {"id": "t-1", "messages": MESSAGES, "source": "ai2"},
        "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n",
        ["Hello.<|im_end|>"],
    ),
}  # fmt: skip


def write(name, record, folder):
    """A file or folder as the corpus has it; returns its path."""
    line = json.dumps(record).encode() + b"\n"
    if name in ("c4", "flan"):
        path = folder / f"{name}.json.gz"
        path.write_bytes(gzip.compress(line))
    elif name == "pile":
        path = folder / "00.jsonl.zst"
        path.write_bytes(zstandard.ZstdCompressor().compress(line))
    elif name == "gsm8k":
        path = folder / "train.jsonl"
        path.write_bytes(line)
    elif name == "trivia_qa":
        datasets = pytest.importorskip("datasets")
        path = folder / "trivia_qa"
        datasets.DatasetDict(train=datasets.Dataset.from_list([record])).save_to_disk(path)
    else:
        path = folder / "train-00000.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record]), path)
    return path


def check(source, text, loss):
    (document,), tally = reader.read(source, facts=FACTS)
    assert document.text == text and not tally.dropped
    found = None if document.loss is None else [text[begin:end] for begin, end in document.loss]
    assert found == loss
    return document


@pytest.mark.parametrize("name", RECORDS)
def test_a_recipe_reads_its_corpus(name, tmp_path):
    record, text, loss = RECORDS[name]
    path = write(name, record, tmp_path)
    kind = type(config.load("tokenize", [RECIPE]).sources[name]).__name__
    root = config.load("tokenize", [RECIPE], [f"{name}/{kind}.path={path}"])
    document = check(root.sources[name], text, loss)
    key = root.sources[name].id_field
    assert document.id == (record[key] if key else f"{path.name}:1")


def test_squad_as_tfds_prepares_it(tmp_path):
    sys.modules.setdefault(
        "importlib_resources", importlib.resources
    )  # see tests/corpora/tfds_test
    import tensorflow_datasets

    class Squad(tensorflow_datasets.core.GeneratorBasedBuilder):
        VERSION = tensorflow_datasets.core.Version("3.0.0")

        def _info(self):
            kinds = tensorflow_datasets.features
            return tensorflow_datasets.core.DatasetInfo(
                builder=self,
                features=kinds.FeaturesDict({
                    "id": np.str_, "title": kinds.Text(), "context": kinds.Text(),
                    "question": kinds.Text(),
                    "answers": kinds.Sequence({"text": kinds.Text(), "answer_start": np.int32}),
                }),
            )  # fmt: skip

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield 0, {
                "id": "57a", "title": "T", "context": "It is blue.", "question": "What is it?",
                "answers": [{"text": "blue", "answer_start": 6}],
            }  # fmt: skip

    Squad(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    path = tmp_path / "squad" / "3.0.0"
    source = config.load("tokenize", [RECIPE], [f"squad/Tfds.path={path}"]).sources["squad"]
    document = check(source, "It is blue.\nQuestion: What is it?\nAnswer: blue", ["blue"])
    assert document.id == "57a"


@pytest.mark.parametrize("path", [p for p in CORPORA if p.stem != "demo"], ids=lambda p: p.stem)
def test_a_recipe_says_licence_and_tokens(path):
    text = path.read_text(encoding="utf-8")
    assert "\n# Licence: " in text and "\n# Tokens: " in text and "\n# Fields: " in text
    assert path.stem in {*RECORDS, "squad"}
