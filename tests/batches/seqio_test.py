# SPDX-License-Identifier: Apache-2.0
"""seqio Tasks and Mixtures through `tokenize`. Imports TensorFlow, which takes its time."""

import importlib
import pathlib
import sys

import numpy as np
import pytest

from midjax import config, files
from midjax.batches import loader, seqio, shards, tokenize, vocabulary
from midjax.corpora import formats, text
from midjax.corpora import seqio as seqio_lib

MODULE = "midjax_tokenize_test_tasks"
TASKS = """
import functools
import os
import seqio
import tensorflow as tf

PIECES = os.path.join(
    os.path.dirname(seqio.__file__), "test_data/sentencepiece/sentencepiece.model"
)
VOCABULARIES = {
    "pieces": seqio.SentencePieceVocabulary(PIECES),
    "extra": seqio.SentencePieceVocabulary(PIECES, extra_ids=5),
    "bytes": seqio.ByteVocabulary(),
    "given": seqio.PassThroughVocabulary(size=100),
}

def lines(split, shuffle_files, seed=None, tag=""):
    texts = [f"this is {tag} test {i % 7}" for i in range(30)]
    return tf.data.Dataset.from_tensor_slices({"text": texts})

for tag, kind in (("a", "pieces"), ("b", "pieces"), ("c", "bytes"), ("d", "extra"), ("e", "given")):
    seqio.TaskRegistry.add(
        f"midjax_{tag}",
        source=seqio.FunctionDataSource(functools.partial(lines, tag=tag), splits=["train"]),
        preprocessors=[
            functools.partial(seqio.preprocessors.rekey, key_map={"targets": "text"}),
            seqio.preprocessors.tokenize,
            seqio.preprocessors.append_eos,
        ],
        output_features={"targets": seqio.Feature(VOCABULARIES[kind], add_eos=True)},
    )
seqio.MixtureRegistry.add("midjax_mix", [("midjax_a", 3.0), ("midjax_b", 1.0)])
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """The module that registers the Tasks, imported."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / f"{MODULE}.py").write_text(TASKS)
    sys.path.insert(0, str(folder))
    yield importlib.import_module(MODULE)
    sys.path.remove(str(folder))


def task(tag):
    return seqio_lib.SeqioTask(module=MODULE, task=f"midjax_{tag}", split="train")


def recipe(tmp_path, sources, tokenizer=None):
    return tokenize.Tokenize(
        sources=sources,
        tokenizer=tokenizer,
        output=str(tmp_path / "out"),
        shard_tokens=100,
        processes=1,
    )


def test_a_mixture_becomes_token_folders_and_weights(tasks, tmp_path):
    import seqio as library

    mixture = seqio_lib.SeqioMixture(module=MODULE, mixture="midjax_mix", split="train")
    manifests = tokenize.run(recipe(tmp_path, {"mix": mixture}))
    assert list(manifests) == ["mix/midjax_a", "mix/midjax_b"]
    for name in ("midjax_a", "midjax_b"):
        source = shards.TokenSource(str(tmp_path / "out" / "mix" / name))
        dataset = library.get_mixture_or_task(name).get_dataset(
            sequence_length=None, split="train", shuffle=False, num_epochs=1
        )
        expected = [example["targets"] for example in dataset.as_numpy_iterator()]
        assert len(source) == len(expected) == 30 and len(source.manifest["shards"]) > 1
        for i, tokens in enumerate(expected):
            assert source[i].tolist() == tokens.tolist() and tokens[-1] == 1
        assert source.manifest["lint"]["unknown"] == sum(int(np.sum(t == 2)) for t in expected) > 0
    place = tmp_path / "out" / "mix" / "mixture.gin"
    data = config.load_class(
        loader.Data,
        [str(place)],
        [
            "Source.packing=concat", "Data.row_tokens=16", "Data.batch_rows=4", "Mixture.seed=0",
            "Mixture.block_rows=8", 'Mixture.max_epochs={"midjax_a": 9.0, "midjax_b": 9.0}',
        ],
    )  # fmt: skip
    assert dict(data.mixture.stages[0].weights) == {"midjax_a": 0.75, "midjax_b": 0.25}
    assert len(loader.Opened(data).plans["midjax_b"]) > 0


def test_tasks_and_texts_mix_where_their_vocabulary_is_one(tasks, tmp_path):
    (tmp_path / "in.txt").write_text("this is a test")
    plain = text.PlainText(
        path=str(tmp_path / "in.txt"),
        separator=None,
        format=formats.Text(field="text"),
        max_bad_records=0,
    )
    pieces = vocabulary.SentencePiece(path=tasks.PIECES, add_bos=False, add_eos=True)
    bytes_ = vocabulary.ByteTokenizer(add_eos=True)
    for tag, tokenizer, wrong in (("a", pieces, bytes_), ("c", bytes_, pieces)):
        sources = {"task": task(tag), "text": plain}
        folder = tmp_path / tag
        with pytest.raises(ValueError, match="The sources have different tokenizers"):
            tokenize.run(recipe(folder, sources, wrong))
        manifests = tokenize.run(recipe(folder, sources, tokenizer))
        made, theirs = manifests["text"], manifests["task"]
        assert made["tokenizer_hash"] == theirs["tokenizer_hash"]
        assert made["vocab_size"] == theirs["vocab_size"]
        found = shards.TokenSource(str(folder / "out" / "text"))[0]
        assert found.tolist()[:-1] == list(tasks.VOCABULARIES[
            "pieces" if tag == "a" else "bytes"
        ].encode("this is a test"))  # fmt: skip


def test_vocabularies_with_sentinels_differ_and_unknown_kinds_are_refused(tasks):
    plain, extra = seqio.tokenizer_of(task("a")), seqio.tokenizer_of(task("d"))
    assert plain.tokenizer_hash == files.sha256_of(tasks.PIECES) != extra.tokenizer_hash
    assert extra.vocab_size == plain.vocab_size + 5
    with pytest.raises(ValueError, match="has a PassThroughVocabulary; midjax knows"):
        seqio.tokenizer_of(task("e"))


def test_a_task_that_is_named_twice_is_refused(tasks):
    mixture = seqio_lib.SeqioMixture(module=MODULE, mixture="midjax_mix", split="train")
    with pytest.raises(ValueError, match=r"names \['mix/midjax_a'\] twice"):
        seqio.expand({"mix": mixture, "mix/midjax_a": task("a")})


def test_scopes_are_names_that_gin_takes(tmp_path):
    class Mixture:
        mixture, module, split = "m", "mod", "train"

        def rates(self):
            return {"a.b": 0.5, "a-b": 0.25, "ü": 0.25}

    place = pathlib.Path(seqio.write_mixture(str(tmp_path), "1 x", Mixture()))
    lines = [line for line in place.read_text().splitlines() if "Source()" in line]
    assert len({line.split("@")[1] for line in lines}) == 3
    data = config.load_class(
        loader.Data,
        [str(place)],
        [
            "Source.packing=concat", "Data.row_tokens=16", "Data.batch_rows=4", "Mixture.seed=0",
            "Mixture.block_rows=8", 'Mixture.max_epochs={"a.b": 9.0, "a-b": 9.0, "ü": 1.0}',
        ],
    )  # fmt: skip
    assert data.sources["ü"].tokens == str(tmp_path / "1 x" / "ü")
