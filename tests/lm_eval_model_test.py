# SPDX-License-Identifier: Apache-2.0
"""The adapter, with a stand-in for lm_eval that has what of it is used, and the same signatures."""

import builtins
import sys
import types

import byte_pairs
import pytest
import tiny_model

from midjax import lm_eval_model
from midjax.evals import requests
from midjax.model import hf


class LM:
    """As lm_eval.api.model.LM: abstract there are the three methods."""

    def __init__(self):
        self.cache_hook = types.SimpleNamespace(add_partial=lambda *kept: kept_answers.append(kept))


kept_answers = []
registered = {}


@pytest.fixture
def lm_eval(monkeypatch):
    kept_answers.clear()
    registered.clear()

    def register_model(*names):
        return lambda cls: registered.update(dict.fromkeys(names, cls)) or cls

    model = types.SimpleNamespace(LM=LM)
    registry = types.SimpleNamespace(register_model=register_model)
    api = types.ModuleType("lm_eval.api")
    api.model, api.registry = model, registry
    package = types.ModuleType("lm_eval")
    package.api = api
    for name, module in {
        "lm_eval": package,
        "lm_eval.api": api,
        "lm_eval.api.model": model,
        "lm_eval.api.registry": registry,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    lm_eval_model.register.cache_clear()
    yield
    lm_eval_model.register.cache_clear()


def instance(*args):
    return types.SimpleNamespace(args=args)


class Engine:
    """Answers that tell what was asked."""

    def loglikelihoods(self, asked):
        return [
            requests.Likelihood(nats=-len(one.context), greedy=one.continuation == "x", tokens=1)
            for one in asked
        ]

    def rolling(self, asked):
        return [requests.Likelihood(nats=-len(one.text), greedy=True, tokens=1) for one in asked]

    def generate(self, asked):
        return [(f"{one.context}|{one.max_new_tokens}|{one.stop}",) for one in asked]


def test_requests_and_answers(lm_eval):
    cls = lm_eval_model.register()
    assert registered == {"midjax": cls} and issubclass(cls, LM)
    # What lm_eval hands to every model is taken.
    model = cls(engine=Engine(), batch_size="auto", max_batch_size=8, device="cuda")
    assert model.loglikelihood([instance("ab", "x"), instance("", "y")], disable_tqdm=True) == [
        (-2, True),
        (0, False),
    ]
    assert model.loglikelihood_rolling([instance("abc")]) == [-3]
    until = {"until": ["\n"], "max_gen_toks": 5, "do_sample": False}
    assert model.generate_until([instance("a", until), instance("b", {})]) == [
        "a|5|('\\n',)",
        "b|256|()",
    ]
    assert kept_answers == [
        ("loglikelihood", ("ab", "x"), (-2, True)),
        ("loglikelihood", ("", "y"), (0, False)),
        ("loglikelihood_rolling", ("abc",), -3),
        ("generate_until", ("a", until), "a|5|('\\n',)"),
        ("generate_until", ("b", {}), "b|256|()"),
    ]


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"until": "Q:"}, {"stop": ("Q:",), "max_new_tokens": 256}),
        # Sampling wants do_sample or, where that is not said, a temperature.
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0.0}),
        ({"temperature": 0.7, "top_p": 0.9}, {"temperature": 0.7, "top_p": 0.9}),
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"temperature": 0.0, "top_p": 0.9}, {"temperature": 0.0, "top_p": 1.0}),
        # The first of these counts, as in lm_eval.
        ({"max_new_tokens": 7, "max_gen_toks": 9}, {"max_new_tokens": 9}),
        ({"max_tokens": 3, "until": ["", "a"]}, {"max_new_tokens": 3, "stop": ("a",)}),
    ],
)
def test_generation_arguments(settings, wanted):
    found = lm_eval_model.generation("c", settings)
    assert {name: getattr(found, name) for name in wanted} == wanted


def test_generation_arguments_that_are_not_known_are_named():
    with pytest.raises(ValueError, match=r"generation_kwargs have \['num_beams'\]"):
        lm_eval_model.generation("c", {"num_beams": 4})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "one of them; got run='', folder=''"),
        ({"run": "a", "folder": "b"}, "one of them"),
        ({"run": "a"}, "wants tokenizer="),
    ],
)
def test_what_to_open_is_said_once(settings, message):
    with pytest.raises(ValueError, match=message):
        lm_eval_model.Settings(**settings)


def test_without_lm_eval_it_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def none(name, *rest):
        if name.partition(".")[0] == "lm_eval":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", none)
    lm_eval_model.register.cache_clear()
    with pytest.raises(ImportError, match=r"pip install midjax\[lm_eval\]"):
        lm_eval_model.register()


def test_a_hugging_face_folder_is_opened(lm_eval, tmp_path):
    config = tiny_model.config(vocab_size=264, layers=1, context_tokens=64)
    hf.save(
        str(tmp_path), config, tiny_model.params(config), "float32", ids={"eos_token_id": [1, 5]}
    )
    byte_pairs.save(tmp_path, byte_pairs.make("abc"), bos_token="<s>", eos_token="</s>")
    model = lm_eval_model.register()(folder=str(tmp_path), context_tokens=32, batch_tokens=256)
    assert model.engine.eos_ids == (1, 5) and model.engine.scorer.context_tokens == 32
    ((nats, greedy),) = model.loglikelihood([instance("ca", " b")])
    want = model.engine.scorer.loglikelihoods(
        [requests.Loglikelihood(context="ca", continuation=" b")]
    )
    assert (nats, greedy) == (want[0].nats, want[0].greedy) and nats < 0
