# SPDX-License-Identifier: Apache-2.0
"""RULER's words to count: which are the most common ones?

cwe   1. harbour 2. gentle 3. harbour ...    10 words come often, the others rarely
fwe   ... qwhzkd ... plmzoa qwhzkd ...       words of letters at random, their numbers by Zipf's
                                             law: word k has a share of k^-2; the first is "..."
"""

import math
import random
import re
import string
from collections.abc import Iterator, Sequence

from midjax.evals.long import draft, haystack

_LIST = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n"
)
_LIST_AFTER = (
    "\nQuestion: What are the 10 most common words in the above list? Answer: The top 10 words "
    "that appear most often in the list are:"
)
_COMMON = 10
# From so many tokens on: the example's words, how often its common and its other words come, and
# how often those of the list do.
_REPEATS = ((4096, (40, 10, 3), (30, 3)), (0, (20, 3, 1), (6, 1)))
# Words of the list that are kept for filling.
_SPARE = 24
# Where the words run out, all come this many times as often, at most.
_MOST_TIMES = 1 << 20

_CODED = (
    "Read the following coded text and track the frequency of each coded word. Find the three most "
    "frequently appeared coded words. "
)
_CODED_AFTER = (
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three "
    "most frequently appeared words in the above coded text? Answer: According to the coded text "
    "above, the three most frequently appeared words are:"
)
_DOTS = "..."
_LETTERS, _ASKED = 6, 3
# A vocabulary of a word for each so many tokens of the text.
_TOKENS_PER_WORD, _LEAST_VOCABULARY = 50, 5
_FILLING = 32
_ZETA_2 = math.pi**2 / 6
# With fewer, the third and the fourth word may be equally frequent.
_LEAST_CODED = 53


def common_words(text: haystack.Haystack, row_tokens: int, name: str) -> Iterator[draft.Draft]:
    """One sample, with the words once, twice, four times ... as often, for where they run out.

    Args:
      text: gives the words.
      row_tokens: says how often the words come.
      name: what the random numbers depend on.
    """
    rng = draft.generator(name, "words")
    words = list(text.vocabulary())
    rng.shuffle(words)
    # A common word that is a part of another would be found in that one, too.
    common: list[str] = []
    for word in words:
        if len(common) < _COMMON and not any(word in one or one in word for one in common):
            common.append(word)
    others = [word for word in words if not any(one in word for one in common)]
    (shown, shown_common, shown_other), repeats = next(
        (example, own) for least, example, own in _REPEATS if row_tokens >= least
    )
    # The example's words are taken from the end, the list's from the beginning.
    taken = [others.pop() for _ in range(shown)]
    order = draft.generator(name, "example")
    listed = _listed(taken[:_COMMON], taken[_COMMON:], shown_common, shown_other, order)
    answer = " ".join(f"{n}. {word}" for n, word in enumerate(taken[:_COMMON], 1))
    example = f"{_LIST}{_numbered(listed)}{_LIST_AFTER} {answer}\n"
    times = 1
    while times <= _MOST_TIMES:
        yield _of_list(example, common, others, (times * repeats[0], times * repeats[1]), name)
        times *= 2


def _of_list(
    example: str, common: Sequence[str], others: Sequence[str], repeats: tuple[int, int], name: str
) -> draft.Draft:
    def listed(units: int) -> list[str]:
        order = draft.generator(name, "order")
        return _listed(common, others[:units], *repeats, order)

    def render(units: int, size: int, tail: str) -> str:
        words = listed(units)
        spare = [*others[units : units + _SPARE]] * repeats[1]
        more = "".join(f" {n}. {word}" for n, word in enumerate(spare, len(words) + 1))
        return example + _LIST + _numbered(words) + more[:size] + tail + _LIST_AFTER

    def beside(text: str) -> list[str]:
        within = text[len(example) + len(_LIST) : len(text) - len(_LIST_AFTER)]
        words = dict.fromkeys(re.findall(r"\d+\. (\S+)", within))
        return [word for word in words if word not in common]

    return draft.Draft(
        render=render,
        least_units=1,
        most_units=len(others) - _SPARE,
        characters=_SPARE * repeats[1] * 7,  # no entry is shorter
        references=tuple(common),
        beside=beside,
        elsewhere=lambda: iter(others),
        forms=float(len(others) + len(common)),
    )


def _listed(
    common: Sequence[str],
    others: Sequence[str],
    common_repeats: int,
    other_repeats: int,
    order: random.Random,
) -> list[str]:
    found = [*common] * common_repeats + [*others] * other_repeats
    order.shuffle(found)
    return found


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))


def frequent_words(row_tokens: int, name: str) -> draft.Draft:
    """One sample. Arguments as of `common_words`."""
    rng = draft.generator(name, "coded")
    coded = draft.Endless(_coded(rng))
    most = max(row_tokens // _TOKENS_PER_WORD, _LEAST_VOCABULARY)
    vocabulary = [_DOTS, *coded.first(most - 1)]
    # Words beyond the vocabulary come once, at the end, as filling.
    more = "".join(" " + word for word in coded.first(most + _FILLING)[most:])

    def render(units: int, size: int, tail: str) -> str:
        words: list[str] = []
        for rank, word in enumerate(vocabulary, 1):
            words += [word] * int(units / (_ZETA_2 * rank**2))
        draft.generator(name, "order").shuffle(words)
        return _CODED + " ".join(words) + more[:size] + tail + _CODED_AFTER

    references = tuple(vocabulary[1 : 1 + _ASKED])

    def beside(text: str) -> list[str]:
        within = text[len(_CODED) : len(text) - len(_CODED_AFTER)]
        known = {_DOTS, *references}
        return [word for word in dict.fromkeys(within.split()) if word not in known]

    return draft.Draft(
        render=render,
        least_units=_LEAST_CODED,
        most_units=None,
        characters=len(more),
        references=references,
        beside=beside,
        elsewhere=lambda: _coded(draft.generator(name, "elsewhere")),
        forms=26.0**_LETTERS,
    )


def _coded(rng: random.Random) -> Iterator[str]:
    return draft.distinct(lambda: "".join(rng.choices(string.ascii_lowercase, k=_LETTERS)), set())
