# SPDX-License-Identifier: Apache-2.0
import random
import re

import pytest

from midjax.corpora import fim, formats

SENTINELS = ("<PRE>", "<SUF>", "<MID>")
FACTS = formats.TokenizerFacts(
    special_tokens=frozenset({*SENTINELS, "<|end|>"}),
    bos_token=None,
    eos_token="<|end|>",
    chat_template=None,
)


def config(**changes):
    fields = {
        "field": "text", "share": 1.0, "spm_share": 0.5, "seed": 0, "prefix_token": "<PRE>",
        "suffix_token": "<SUF>", "middle_token": "<MID>",
    }  # fmt: skip
    return fim.FillInTheMiddle(**(fields | changes))


def rendered(form, text, key="id"):
    return form.open(FACTS)({"text": text}, key)


TEXT = "".join(chr(33 + i % 13) if i % 7 else "ü" for i in range(200)) + "#"


def test_every_document_can_be_put_back_together():
    orders = {"psm": 0, "spm": 0}
    cuts = set()
    for number in range(400):
        form = rendered(config(), TEXT, f"d{number}")
        assert form.special and form.loss is None
        prefix, suffix, rest = re.fullmatch("<PRE>(.*)<SUF>(.*)<MID>(.*)", form.text).groups()
        if prefix:
            orders["psm"] += 1
            assert prefix + rest + suffix == TEXT
            cuts.add(len(prefix))
        else:  # SPM: prefix and middle in one, or PSM with an empty prefix
            orders["spm"] += 1
            assert rest + suffix == TEXT
    assert 150 < orders["psm"] < 250  # half of 400: five standard deviations
    # Lesser of two uniform numbers: a third of the length on average.
    assert len(cuts) > 80 and abs(sum(cuts) / len(cuts) - len(TEXT) / 3) < 20


def test_shares():
    ids = [f"d{i}" for i in range(1000)]
    some = sum(rendered(config(share=0.3), TEXT, key).special for key in ids)
    assert 230 < some < 370
    assert not any(rendered(config(share=0.0), TEXT, key).special for key in ids)
    psm = [rendered(config(spm_share=0.0), TEXT, key).text for key in ids]
    spm = [rendered(config(spm_share=1.0), TEXT, key).text for key in ids]
    assert all(text.startswith("<PRE><SUF>") for text in spm)
    assert sum(text.startswith("<PRE><SUF>") for text in psm) < 30  # where the cut is at 0


def test_only_seed_and_id_decide():
    keys = [f"d{i}" for i in range(50)]
    first = [rendered(config(), TEXT, key) for key in keys]
    again = {key: rendered(config(), TEXT, key) for key in random.Random(0).sample(keys, 50)}
    assert [again[key] for key in keys] == first
    assert [rendered(config(seed=1), TEXT, key) for key in keys] != first
    # Pinned: another version must not rearrange documents that were tokenized already.
    assert [rendered(config(), "0123456789", key).text for key in "abc"] == [
        "<PRE>01234<SUF>56789<MID>", "<PRE><SUF>6789<MID>012345", "<PRE><SUF>789<MID>0123456"
    ]  # fmt: skip


def test_a_text_with_a_special_token_stays_as_it_is():
    text = "a <|end|> b"
    assert rendered(config(), text) == formats.Rendered(text=text)


def test_empty_texts_are_dropped_before_sentinels_hide_it():
    with pytest.raises(formats.Drop, match="empty text"):
        rendered(config(), " \n")


def test_messages():
    with pytest.raises(ValueError, match="FillInTheMiddle.share must be in 0 to 1, got 1.5"):
        config(share=1.5)
    with pytest.raises(ValueError, match="middle_token '<M>' is not a special token .* it has"):
        rendered(config(middle_token="<M>"), "x")
