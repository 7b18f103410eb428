# SPDX-License-Identifier: Apache-2.0
"""Small real corpora for the demo and the tests: prose, code and maths, and a tokenizer.

Each domain has a train and a held-out split, `<domain>.<split>.jsonl.gz`, one JSON object per line
with `id`, `text` and `origin`; `tokenizer/` is a Hugging Face folder. Origins, licences and what
was changed: README.md.
"""

import importlib.resources
import pathlib

DOMAINS = ("prose", "code", "maths")
SPLITS = ("train", "heldout")


def path(name: str) -> str:
    """Path of a file or folder of the demo data, e.g. `prose.train.jsonl.gz` or `tokenizer`.

    Raises:
      ValueError: there is nothing of that name; the message lists what there is.
    """
    folder = pathlib.Path(str(importlib.resources.files(__name__)))
    known = sorted(item.name for item in folder.glob("*.jsonl.gz")) + ["tokenizer"]
    if name not in known:
        raise ValueError(f"no demo data called {name!r}; there are {', '.join(known)}")
    return str(folder / name)
