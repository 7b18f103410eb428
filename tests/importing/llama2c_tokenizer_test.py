# SPDX-License-Identifier: Apache-2.0
"""The converted tokenizer against llama2.c's own algorithm, written out here."""

import random
import struct

import imported
import pytest
import tokenizers

from midjax.importing import foreign, llama2c_tokenizer

FILE = imported.STORIES / "tok512.bin"


@pytest.fixture(scope="module")
def pieces():
    return llama2c_tokenizer.read(str(FILE), 512)


@pytest.fixture(scope="module")
def tokenizer():
    files = llama2c_tokenizer.convert(str(FILE), 512)
    assert set(files) == {"tokenizer.json", "tokenizer_config.json"}
    found = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    found.encode_special_tokens = True  # as `batches.tokenize` has it: they are text in a text
    return found


def encode(pieces, text):
    """run.c's encode(): characters, then the best-scored neighbours joined, again and again."""
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    if not text:
        return []
    tokens = [ids[" "]]
    for character in text:
        known = ids.get(character)
        tokens += [known] if known is not None else [byte + 3 for byte in character.encode()]
    while True:
        best, at, union = -1e10, None, None
        for i in range(len(tokens) - 1):
            joined = ids.get(pieces[tokens[i]][0] + pieces[tokens[i + 1]][0])
            if joined is not None and pieces[joined][1] > best:
                best, at, union = pieces[joined][1], i, joined
        if at is None:
            return tokens
        tokens[at : at + 2] = [union]


def test_stories_have_the_ids_of_llama2c(pieces, tokenizer):
    text = (imported.DATA / "tinystories" / "sample.txt").read_text()
    stories = [story.strip() for story in text.split("<|endoftext|>")][:25]
    for story in stories:
        found = tokenizer.encode(story, add_special_tokens=False).ids
        assert found == encode(pieces, story)
        assert tokenizer.decode(found) == story


def test_any_text_has_the_ids_of_llama2c_and_comes_back(pieces, tokenizer):
    rng = random.Random(0)
    alphabet = [piece for piece, _ in pieces[259:]]
    alphabet += [*"\n\t日é▁😀\x00ß", "<s>", "</s>", "<0x0A>", "<unk>", "\n<s>\n", "  ", "lll"]
    texts = ["", " ", "  x", "a\u0301"]
    texts += ["".join(rng.choices(alphabet, k=rng.randint(1, 25))) for _ in range(1500)]
    for text in texts:
        found = tokenizer.encode(text, add_special_tokens=False).ids
        assert found == encode(pieces, text), text
        assert tokenizer.decode(found) == text


def test_special_tokens_and_bytes(tokenizer):
    assert [tokenizer.token_to_id(t) for t in ("<unk>", "<s>", "</s>", "<0x00>", "<0xFF>")] == [
        0, 1, 2, 3, 258,
    ]  # fmt: skip
    assert tokenizer.get_vocab_size() == 512
    assert tokenizer.encode("a").ids[0] == 1  # for transformers, which adds what a model wants


def test_of_three_neighbours_the_left_two_join_first():
    found = [("", 0.0)] * 259 + [
        (t, -float(i)) for i, t in enumerate(["a", "b", "ab", "ba", "aba"])
    ]
    assert llama2c_tokenizer.merges(found) == [
        ("a", "b"), ("b", "a"), ("ab", "a"), ("a", "ba"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "size", "message"),
    [
        (lambda b: b[:2000], 512, "token 1[0-9]+ cannot be read"),
        (lambda b: b, 511, "bytes after the 511 tokens of the model"),
        (lambda b: b, 513, "token 512 cannot be read"),
        (
            lambda b: b[:4] + struct.pack("<fi", 0.0, 1 << 20) + b[12:],
            512,
            "token 0 cannot be read",
        ),
        (lambda b: b.replace(b"<0x07>", b"<0x7_>"), 512, "has the byte <0x07> there"),
        (lambda b: b.replace(b" the", b" and"), 512, "two tokens are the same"),
    ],
)
def test_files_that_are_not_this_tokenizer(tmp_path, change, size, message):
    (tmp_path / "t.bin").write_bytes(change(FILE.read_bytes()))
    with pytest.raises(foreign.ForeignError, match=message):
        llama2c_tokenizer.convert(str(tmp_path / "t.bin"), size)
