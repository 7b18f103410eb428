# SPDX-License-Identifier: Apache-2.0
"""Record -> text, and which of its characters bear loss.

format.open(facts of the tokenizer) -> render;   render(record, id) -> Rendered, or raises Drop
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any


class Drop(Exception):
    """A record that gives no document; the message is the reason that is counted.

    Reasons are few and the same for all records of a kind: they hold no text of the record.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerFacts:
    """What a format needs to know of the tokenizer that will read its text.

    Attributes:
      special_tokens: strings that the tokenizer reads as one special token.
      bos_token, eos_token: put around documents by the tokenizer; None where there is none.
      chat_template: Jinja source of the tokenizer's chat template; None where it has none.
    """

    special_tokens: frozenset[str]
    bos_token: str | None
    eos_token: str | None
    chat_template: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rendered:
    """The text of one record; `loss` and `special` as in `types.Document`."""

    text: str
    loss: tuple[tuple[int, int], ...] | None = None
    special: bool = False


Render = Callable[[Mapping[str, Any], str], Rendered]


def string(record: Mapping[str, Any], field: str) -> str:
    """The string in a field; bytes are read as UTF-8.

    Raises:
      Drop: there is none, or it is not UTF-8.
    """
    value = record.get(field)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise Drop("invalid UTF-8") from None
    if not isinstance(value, str):
        raise Drop(f"no string field {field!r}")
    return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """A field as it is. All of it bears loss.

    Attributes:
      field: holds the text.
    """

    field: str

    def fields(self) -> frozenset[str]:
        """Fields that the text is made of."""
        return frozenset([self.field])

    def open(self, facts: TokenizerFacts) -> Render:
        """The function from a record to its text."""
        return lambda record, key: Rendered(text=string(record, self.field))
