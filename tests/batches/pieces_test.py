# SPDX-License-Identifier: Apache-2.0
"""SentencePiece and bytes against the libraries' own encoders."""

import io

import numpy as np
import pytest
import sentencepiece

from midjax import types
from midjax.batches import vocabulary

TEXTS = ["hello world this is a text", "the quick brown fox ünï 12345", "def f(x): return x"]
MARK, END = "<|mark|>", "<|im_end|>"


@pytest.fixture(scope="module")
def model():
    """The bytes of a small model with byte fallback, a user-defined symbol and a control symbol."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 50), model_writer=written, vocab_size=330,
        model_type="bpe", byte_fallback=True, user_defined_symbols=[MARK],
        control_symbols=[END], hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return written.getvalue()


@pytest.fixture
def encoder(model, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(model)
    return vocabulary.SentencePiece(path=str(tmp_path), add_bos=True, add_eos=True).open()


@pytest.fixture
def library(model):
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def document(text, **changes):
    return types.Document(text=text, id="i", source="s", **changes)


def test_texts_are_encoded_as_by_the_library(encoder, library):
    texts = [*TEXTS, f"a {MARK} b {END} </s>", "日本 😀", "nul \0 x", " "]
    for text, found in zip(texts, encoder.encode([document(t) for t in texts]), strict=True):
        assert found.tokens.tolist() == [1, *library.encode(text), 2]
        assert found.loss is None and found.text_bytes == len(text.encode())
    assert (encoder.facts["bos_id"], encoder.facts["eos_id"]) == (1, 2)
    assert encoder.facts["vocab_size"] == library.vocab_size()
    assert encoder.tokenizer_facts.special_tokens == {"<s>", "</s>", MARK, END}
    assert encoder.unknown_id == library.unk_id()


def test_control_symbols_are_read_where_a_format_put_them(encoder, library):
    end, mark = library.piece_to_id(END), library.piece_to_id(MARK)
    (found,) = encoder.encode([document(f"hello{END}hello {MARK}x{END}", special=True)])
    first = library.encode("hello")
    # The second part has no blank before it, which "hello" by itself would get.
    second = library.encode(f"{MARK}hello {MARK}x")
    second = second[second.index(mark) + 1 :]
    assert found.tokens.tolist() == [1, *first, end, *second, end, 2]
    assert library.id_to_piece(first[0]).startswith("▁") and mark in second
    assert not library.id_to_piece(second[0]).startswith("▁")
    (begun,) = encoder.encode([document("<s>hello</s>", special=True)])
    assert begun.tokens.tolist()[0] == 1 and begun.tokens.tolist().count(1) == 1
    assert begun.tokens.tolist().count(2) == 1


def test_every_token_that_shares_a_character_with_a_range_bears_loss(encoder, library):
    text = f"hello 日 world{END}"
    for special in (False, True):
        for begin, end in ((0, 5), (6, 7), (8, 13), (3, 9), (13, len(text))):
            (found,) = encoder.encode([document(text, special=special, loss=((begin, end),))])
            assert found.loss.dtype == bool and len(found.loss) == len(found.tokens)
            kept = library.decode(found.tokens[found.loss].tolist())
            rest = library.decode(found.tokens[~found.loss].tolist())
            expected = text[begin:end].replace(END, "") if special else text[begin:end]
            assert expected in kept and (special or END in kept + rest)
            assert len(kept) + len(rest) <= len(text) + 2
    (found,) = encoder.encode([document(text, loss=((6, 7),))])
    pieces = [library.id_to_piece(t) for t in found.tokens[found.loss].tolist()]
    assert [p for p in pieces if p != "▁"] == ["<0xE6>", "<0x97>", "<0xA5>"]


def test_models_that_are_missing_or_lack_a_token_are_told(model, tmp_path):
    def opened(path, **changes):
        given = {"add_bos": False, "add_eos": False} | changes
        return vocabulary.SentencePiece(path=str(path), **given).open()

    with pytest.raises(FileNotFoundError, match="holds 0 files"):
        opened(tmp_path)
    with pytest.raises(FileNotFoundError, match="No SentencePiece model"):
        opened(tmp_path / "x.model")
    (tmp_path / "x.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="is not a SentencePiece model"):
        opened(tmp_path / "x.model")
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 50), model_writer=written, vocab_size=60, bos_id=-1,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "x.model").write_bytes(written.getvalue())
    with pytest.raises(ValueError, match=r"has no BOS. Set SentencePiece.add_bos = False"):
        opened(tmp_path / "x.model", add_bos=True)
    bare = opened(tmp_path / "x.model").encode([document("hello")])[0]
    plain = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    assert bare.tokens.tolist() == plain.encode("hello")


def test_bytes_are_those_of_byt5():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.ByT5Tokenizer(extra_ids=0)
    encoder = vocabulary.ByteTokenizer(add_eos=True).open()
    for text in ("hello", "ünï 日 😀", "a\n\tb"):
        (found,) = encoder.encode([document(text)])
        assert found.tokens.tolist() == theirs(text)["input_ids"]
    assert encoder.facts["vocab_size"] == 259 and len(theirs) == 259
    as_text, special = encoder.encode([document("a</s>b"), document("a</s>b", special=True)])
    assert special.tokens.tolist() == [*theirs("a</s>b", add_special_tokens=False)["input_ids"], 1]
    assert as_text.tokens.tolist() == [byte + 3 for byte in b"a</s>b"] + [1]
    (bare,) = vocabulary.ByteTokenizer(add_eos=False).open().encode([document("a")])
    assert bare.tokens.tolist() == [ord("a") + 3]


def test_all_bytes_of_a_character_bear_loss():
    encoder = vocabulary.ByteTokenizer(add_eos=True).open()
    text = "aü日😀z"
    for at in range(len(text)):
        (found,) = encoder.encode([document(text, loss=((at, at + 1),))])
        data = bytes(np.array(found.tokens[:-1][found.loss[:-1]] - 3, np.uint8))
        assert data.decode() == text[at]
        assert found.loss[-1] == (at == len(text) - 1)
    (found,) = encoder.encode([document("x</s>yz", special=True, loss=((1, 6),))])
    assert found.tokens[found.loss].tolist() == [1, ord("y") + 3]
