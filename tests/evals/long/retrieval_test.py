# SPDX-License-Identifier: Apache-2.0
"""Where needles stand, what is asked for, and that nothing else answers it."""

import collections
import itertools
import re

import pytest

from midjax.evals.long import retrieval, tasks

WORDS = ["This", "is", "running", "text.", "Does", "it", "end?", "Never", "so", "Mr.", "Far."]


class Text:
    """Running text and words."""

    def words(self, sample):
        return itertools.cycle(WORDS[sample % 3 :] + WORDS[: sample % 3])

    def vocabulary(self):
        return [a + b + c for a, b, c in itertools.product("abcdefg", "hijkl", "mnopqrs")]


def made(name, sample=0):
    return retrieval.make(tasks.TASKS[name].needles, Text(), sample, f"7/{name}/{sample}")


NAMES = tasks.GROUPS["niah"]
COUNTS = {"niah_multikey_1": (4, 1), "niah_multivalue": (1, 4), "niah_multiquery": (4, 1)}


@pytest.mark.parametrize("name", NAMES)
def test_needles_of_a_text(name):
    one = made(name)
    text = one.render(50, 0, "")
    found = re.findall(r"special magic (\w+) for (\S+) is: (\S+)\.", text)
    keys = collections.Counter(key for _, key, _ in found)
    more = 50 if tasks.TASKS[name].needles.stack == "needles" else 0
    wanted, each = COUNTS.get(name, (1, 1))
    assert len(keys) == wanted + more and set(keys.values()) == {each}
    assert len({value for _, _, value in found}) == len(found)
    uuid = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
    kind = tasks.TASKS[name].needles.values
    assert all(re.fullmatch(uuid if kind == "uuids" else r"[1-9]\d{6}", v) for _, _, v in found)
    asked = re.findall(r"magic \w+ for (.+) mentioned in the provided text\?", text)[-1]
    right = [v for _, k, v in found if k in re.split(", and |, ", asked)]
    assert sorted(one.references) == sorted(right)
    assert sorted(one.beside(text)) == sorted(v for _, _, v in found if v not in right)
    assert not set(one.decoys(text, 20, retrieval.random.Random(0))) & set(one.references)


def test_one_value_is_asked_for_in_the_singular():
    text = made("niah_single_1").render(2, 0, "")
    key = re.findall(r"for (\S+) is:", text)[0]
    assert text.startswith("A special magic number is hidden within the following text. Make")
    assert text.endswith(
        f"\nWhat is the special magic number for {key} mentioned in the provided text? The special "
        f"magic number for {key} mentioned in the provided text is"
    )
    text = made("niah_multivalue").render(9, 0, "")
    assert text.startswith("Some special magic numbers are hidden within the following text.")
    assert text.endswith("mentioned in the provided text are")


@pytest.mark.parametrize("name", ["niah_single_1", "niah_single_2", "niah_multikey_2"])
def test_depths_are_even(name):
    """Kolmogorov's distance from an even distribution: above 1.63 / sqrt(n) once in a hundred."""
    depths = []
    for sample in range(200):
        one = made(name, sample)
        text = one.render(240, 0, "")
        body = text.partition("afterwards.\n")[2].rpartition("\nWhat")[0]
        at = body.index(f"{one.references[0]}.")
        depths.append(at / len(body))
    depths.sort()
    distance = max(max(n / 200 - d, d - (n - 1) / 200) for n, d in enumerate(depths, 1))
    assert distance < 1.63 / 200**0.5


def test_running_text_is_divided_where_sentences_end():
    text = made("niah_multiquery").render(300, 0, "")
    body = text.partition("afterwards.\n")[2].rpartition("\nWhat")[0]
    rest = re.sub(r"One of the special magic numbers for \S+ is: \d+\. ?", "", body)
    assert rest.split() == list(itertools.islice(Text().words(0), 300))
    before = re.findall(r"(\S+) One of the special", body)
    assert before and all(word[-1] in ".?" for word in before)


@pytest.mark.parametrize("name", NAMES)
def test_what_grows_keeps_its_needles_in_place(name):
    one = made(name)
    short, long = one.render(100, 0, ""), one.render(1000, 0, "")
    assert len(long) > 5 * len(short)
    more = one.render(100, 11, " .")
    body, question = short.rsplit("\nWhat", 1)
    assert more.startswith(body) and more.endswith(" .\nWhat" + question)
    assert len(more) == len(short) + 13
