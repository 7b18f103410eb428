# SPDX-License-Identifier: Apache-2.0
"""Against seqio itself: Tasks and a Mixture registered by a module, as their users write them."""

import dataclasses
import sys

import corpora_reading as reader
import numpy as np
import pytest

from midjax.corpora import reading, seqio

MODULE = """
import functools, os
import seqio
import tensorflow as tf

PIECES = os.path.join(
    os.path.dirname(seqio.__file__), "test_data/sentencepiece/sentencepiece.model")
words = seqio.SentencePieceVocabulary(PIECES)
bytes_ = seqio.ByteVocabulary()
FOLDER = os.path.dirname(__file__)

def lm(split, shuffle_files):
    texts = [f"the text {i}" for i in range(40)] + ["", "ünï"]
    return tf.data.Dataset.from_tensor_slices({"text": texts})

def qa(split, shuffle_files, seed=None):
    n = range(10)
    return tf.data.Dataset.from_tensor_slices(
        {"inputs": [f"question {i}" for i in n], "targets": [f"answer {i}" for i in n]})

@seqio.map_over_dataset(num_seeds=1)
def noise(example, seed):
    drawn = tf.random.stateless_uniform([4], seed, 3, 200, dtype=tf.int32)
    return example | {"targets": tf.concat([example["targets"], drawn], 0)}

def upper(dataset):
    return dataset.map(lambda e: {"targets": tf.strings.upper(e["text"])})

add = seqio.TaskRegistry.add
function = functools.partial(seqio.FunctionDataSource, splits=["train", "validation"])
LM = {"targets": seqio.Feature(bytes_, add_eos=True)}
tokenize, eos = seqio.preprocessors.tokenize, seqio.preprocessors.append_eos
add("mj_lm", source=function(lm), preprocessors=[upper, tokenize, eos], output_features=LM)
add("mj_noise", source=function(lm), output_features=LM,
    preprocessors=[upper, tokenize, noise])
add("mj_qa", source=function(qa), preprocessors=[tokenize, eos],
    output_features={"inputs": seqio.Feature(words, add_eos=False),
                     "targets": seqio.Feature(words, add_eos=True)})
def line(dataset):
    return dataset.map(lambda text: {"text": text})

add("mj_files", preprocessors=[line, upper, tokenize, eos], output_features=LM,
    source=seqio.TextLineDataSource({"train": os.path.join(FOLDER, "lines-*.txt")}))
add("mj_two", source=function(qa), preprocessors=[tokenize],
    output_features={"inputs": seqio.Feature(words), "targets": seqio.Feature(bytes_)})
add("mj_text", source=function(qa), preprocessors=[],
    output_features={"targets": seqio.Feature(
        seqio.PassThroughVocabulary(9), dtype=tf.string, rank=0)})
seqio.MixtureRegistry.add("mj_inner", [("mj_lm", 1.0), ("mj_noise", 3.0)])
seqio.MixtureRegistry.add(
    "mj_mix", [("mj_inner", 2.0), ("mj_lm", 1.0), ("mj_files", lambda t: 5.0)])
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "midjax_seqio_tasks.py").write_text(MODULE)
    for number in range(3):
        lines = "".join(f"file {number} line {line}\n" for line in range(7))
        (folder / f"lines-{number}.txt").write_text(lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder
    import seqio as library

    for name in [name for name in library.TaskRegistry.names() if name.startswith("mj_")]:
        library.TaskRegistry.remove(name)
    for name in ("mj_inner", "mj_mix"):
        library.MixtureRegistry.remove(name)
    del sys.modules["midjax_seqio_tasks"]


def config(task, split="train", **fields):
    return seqio.SeqioTask(
        module="midjax_seqio_tasks", task=task, split=split, **({"max_bad_records": 1} | fields)
    )


def expected(task, split="train", sequence_length=None, seed=None):
    import seqio as library

    dataset = library.get_mixture_or_task(task).get_dataset(
        sequence_length=sequence_length, split=split, shuffle=False, num_epochs=1, seed=seed
    )
    return list(dataset.as_numpy_iterator())


def test_tokens_are_those_that_the_preprocessors_made(module):
    documents, tally = reader.read(config("mj_lm"))
    examples = expected("mj_lm")
    assert len(documents) == 42 and config("mj_lm").tokenized
    for document, example in zip(documents, examples, strict=True):
        assert document.tokens.dtype == np.int32 and document.loss is None
        assert np.array_equal(document.tokens, example["targets"]) and document.tokens[-1] == 1
    assert bytes((documents[7].tokens[:-1] - 3).tolist()).decode() == "THE TEXT 7"
    assert [documents[7].text_bytes, documents[41].text_bytes] == [10, 5]
    assert len({document.id for document in documents}) == 42
    assert documents[0].id == "mj_lm.train-00000-of-00001:1" and documents[0].source == "s"
    assert tally.documents == 42 and tally.read_bytes == 1


def test_inputs_come_first_and_bear_no_loss(module):
    documents, _ = reader.read(config("mj_qa"))
    for document, example in zip(documents, expected("mj_qa"), strict=True):
        count = len(example["inputs"])
        assert np.array_equal(document.tokens[:count], example["inputs"])
        assert np.array_equal(document.tokens[count:], example["targets"])
        assert document.loss.tolist() == [False] * count + [True] * len(example["targets"])


def test_files_are_units(module):
    units = config("mj_files").units()
    assert [unit.key for unit in units] == [f"mj_files.train-0000{i}-of-00003" for i in range(3)]
    documents, tally = reader.read(config("mj_files"))
    found = [bytes((document.tokens[:-1] - 3).tolist()).decode() for document in documents]
    assert found == [f"FILE {n} LINE {line}" for n in range(3) for line in range(7)]
    examples = [example["targets"].tolist() for example in expected("mj_files")]
    assert sorted(document.tokens.tolist() for document in documents) == sorted(examples)
    assert tally.read_bytes == sum(p.stat().st_size for p in module.glob("lines-*.txt"))
    before = [unit.fingerprint() for unit in units]
    try:
        (module / "lines-1.txt").write_text("other\n")
        after = [unit.fingerprint() for unit in units]
        assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
    finally:
        lines = "".join(f"file 1 line {line}\n" for line in range(7))
        (module / "lines-1.txt").write_text(lines)


def test_a_stochastic_preprocessor_gives_the_same_tokens_each_time(module):
    first, _ = reader.read(
        config("mj_noise", seed=5)
    )  # its source takes no seed; seqio refuses one
    again, _ = reader.read(config("mj_noise", seed=5))
    other, _ = reader.read(config("mj_noise", seed=6))

    def tokens(documents):
        return [document.tokens.tolist() for document in documents]

    assert tokens(first) == tokens(again) != tokens(other)


def test_sequence_lengths_cut_as_seqio_does(module):
    documents, _ = reader.read(config("mj_lm", sequence_length={"targets": 5}))
    examples = expected("mj_lm", sequence_length={"targets": 5})
    assert [d.tokens.tolist() for d in documents] == [e["targets"].tolist() for e in examples]
    assert max(len(d.tokens) for d in documents) == 5


def test_examples_without_tokens_are_dropped_within_the_budget(module):
    none = {"targets": 0}
    with pytest.raises(
        ValueError, match="2 bad records, and max_bad_records allows 1: 2 x no targ"
    ):
        reader.read(config("mj_lm", sequence_length=none))
    documents, tally = reader.read(config("mj_lm", sequence_length=none, max_bad_records=42))
    assert not documents and tally.dropped == {"no target tokens": 42}


def test_a_mixture_is_its_tasks_and_their_rates(module):
    import seqio as library

    mixture = seqio.SeqioMixture(
        module="midjax_seqio_tasks", mixture="mj_mix", split="train", seed=7, max_bad_records=1
    )
    assert mixture.tasks() == {
        name: config(name, seed=7) for name in ("mj_files", "mj_lm", "mj_noise")
    }
    # mj_inner's 2 of 8 in shares of 1 to 3.
    assert mixture.rates() == pytest.approx({
        "mj_files": 5 / 8, "mj_lm": (1 + 0.5) / 8, "mj_noise": 1.5 / 8,
    })  # fmt: skip
    there = library.MixtureRegistry.get("mj_mix")
    rates = {task.name: there.get_rate(task) for task in there.tasks}
    assert mixture.rates() == pytest.approx({k: v / sum(rates.values()) for k, v in rates.items()})
    part = dataclasses.replace(mixture, split="validation")  # the files have no such split
    assert set(part.tasks()) == {"mj_lm", "mj_noise"}
    assert sum(part.rates().values()) == pytest.approx(1)
    with pytest.raises(ValueError, match="No Task of the Mixture 'mj_mix' has a split 'test'"):
        dataclasses.replace(mixture, split="test").tasks()


def test_vocabularies(module):
    import seqio as library

    assert config("mj_lm").vocabulary() == library.ByteVocabulary()
    assert config("mj_qa").vocabulary().vocab_size == 26
    with pytest.raises(ValueError, match="one vocabulary for inputs and another for targets"):
        config("mj_two").vocabulary()


def test_messages(module):
    with pytest.raises(ValueError, match="registers no seqio Task 'mj_gone'; there are "):
        config("mj_gone").units()
    with pytest.raises(ValueError, match=r"has no split 'dev'; it has \['train', 'validation'\]"):
        config("mj_lm", "dev").units()
    nowhere = dataclasses.replace(config("mj_lm"), module="no_such.tasks")
    with pytest.raises(ValueError, match="No Python module 'no_such.tasks' to register the Task"):
        nowhere.units()
    (module / "needs_more.py").write_text("import no_such_dependency\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        dataclasses.replace(nowhere, module="needs_more").units()
    (unit,) = config("mj_text").units()
    with pytest.raises(ValueError, match="inputs and targets must be lists of token ids, got"):
        list(config("mj_text").documents("s", unit, reading.Tally(), reader.FACTS))
