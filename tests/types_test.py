# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest

from midjax import types


def test_a_document_cannot_change_on_its_way():
    document = types.Document(text="x", id="1", source="s")
    with pytest.raises(dataclasses.FrozenInstanceError):
        document.text = "y"
    assert document.meta == {}
