# SPDX-License-Identifier: Apache-2.0
"""Tokens, steps, rows and how people read them. The only place that converts."""


def ceil_div(amount: int, per: int) -> int:
    """Smallest integer not below `amount / per`."""
    return -(-amount // per)


def steps_of_tokens(tokens: int, batch_tokens: int) -> int:
    """Optimizer steps that consume at least `tokens`, at `batch_tokens` a step."""
    return ceil_div(tokens, batch_tokens)


def rows_of_tokens(tokens: int, row_tokens: int) -> int:
    """Rows that hold at least `tokens`."""
    return ceil_div(tokens, row_tokens)


def human(amount: float) -> str:
    """`1234567` -> `'1.23M'` (powers of 1,000)."""
    return _scaled(amount, ("", "K", "M", "B", "T"))


def human_bytes(amount: float) -> str:
    """`1234567` -> `'1.23 MB'` (powers of 1,000)."""
    return _scaled(amount, (" B", " KB", " MB", " GB", " TB"))


def _scaled(amount: float, suffixes: tuple[str, ...]) -> str:
    power = 0
    while abs(amount) >= 999.5 and power < len(suffixes) - 1:
        amount /= 1000
        power += 1
    return f"{amount:.3g}{suffixes[power]}"


def human_seconds(seconds: float) -> str:
    """`3725` -> `'1h02m'`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
