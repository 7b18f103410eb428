# SPDX-License-Identifier: Apache-2.0
"""Chains can be followed in the order of the text, and the example has its share of the length."""

import re

import pytest

from midjax.evals.long import tracking


def words(text):
    return len(text.split())


@pytest.mark.parametrize(("chains", "hops"), [(1, 4), (3, 2)])
def test_chains(chains, hops):
    task = tracking.Chains(count=chains, hops=hops)
    for sample in range(20):
        one = tracking.make(task, 1000, words, f"0/vt/{sample}")
        text = one.render(30, 0, "")
        within = text[text.rindex("Memorize and track") :]
        lines = re.findall(r"VAR ([A-Z]{5}) = (?:VAR )?([A-Z]{5}|\d{5})", within)
        assert len(lines) == chains * (hops + 1) == len({name for name, _ in lines})
        known = {}
        for name, what in lines:
            known[name] = known.get(what, what)
        assert all(value.isdigit() for value in known.values())
        asked = re.findall(r"are assgined the value (\d+), they are:$", text)
        assert sorted(one.references) == sorted(k for k, v in known.items() if [v] == asked)
        assert re.findall(r", (\d+) variables", text)[-1] == str(hops + 1)
        assert set(one.beside(text)) == set(known) - set(one.references)
        assert one.pool(text) == (chains * (hops + 1) if chains > 1 else 26**5)
        assert within.count("The grass is green.") == 30


def test_the_example_is_answered_and_has_its_share():
    task = tracking.Chains()
    sizes = []
    for row_tokens in (100, 1000, 2000, 4000, 100_000):
        text = tracking.make(task, row_tokens, words, "0/vt/0").render(1, 0, "")
        example = text[: text.rindex("Memorize and track")]
        assert example.endswith("\n\n")
        value = re.findall(r"assigned the value (\d+)", example)[0]
        names = re.findall(r"they are:((?: [A-Z]{3}){5})\n\n$", example)[0].split()
        assert f"VAR {names[0]} = {value}" in example and len(set(names)) == 5
        sizes.append(words(example) - 5)
    least, *shares, most = sizes
    assert least > 12  # there is no shorter one
    for size, limit in zip([*shares, most], (125, 250, 500, 500), strict=True):
        assert limit - 20 < size <= limit  # a sentence more has 20 words
