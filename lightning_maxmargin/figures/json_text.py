"""JSON of a run directory, which anything may have damaged: what Python's reader lets pass and no page can show."""

from __future__ import annotations

import json
from typing import Any

#: Bits of the whole numbers that a run writes.
BITS = 63


def load(text: str) -> Any:
    """The value of a text of JSON.

    Raises:
        ValueError: it is no JSON, holds a whole number of more than 63 bits, which is no float either, or is nested too
            deeply to be read.

    Example:
        >>> load('{"steps": [1, 2]}')
        {'steps': [1, 2]}
        >>> load("1" * 400)
        Traceback (most recent call last):
        ...
        ValueError: a whole number of 400 digits
    """
    try:
        return json.loads(text, parse_int=_whole)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _whole(digits: str) -> int:
    if len(digits) > 20 or int(digits).bit_length() > BITS:
        raise ValueError(f"a whole number of {len(digits.lstrip('-'))} digits")
    return int(digits)
