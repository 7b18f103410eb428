# SPDX-License-Identifier: Apache-2.0
from midjax.launch import exits


def test_every_code_has_one_verdict():
    # The contract: 0 done; 42 and 127 to 255 restart; everything else is for a person to look at.
    verdicts = [exits.verdict(code) for code in range(256)]
    assert verdicts[0] == "done" and verdicts.count("done") == 1
    assert [c for c, v in enumerate(verdicts) if v == "restart"] == [42, *range(127, 256)]
    for code in (1, 2, 3, 4, 5, 41, 43, 126):
        assert verdicts[code] == "stop"


def test_texts():
    assert exits.text(42) == "42 (asked to stop, with the state saved)"
    assert exits.text(77) == "77 (not one of midjax)"
    assert all(0 <= code < 256 for code in exits.MEANINGS)
