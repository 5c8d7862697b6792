"""What of a text is shown: its characters made visible, and of a long one a window around the heaviest word."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_maxmargin.html_table import visible

#: A whole review fills a screen; the window keeps the selected token inside.
MAX_TOKENS = 250
#: Characters of a name, as of a label.
LONGEST_NAME = 80
#: Bytes of the words of a document that stands in the page as text, with what each of them takes beside its letters.
ROOM, BESIDE_WORD = 4_000, 9


def shown_name(name: str) -> str:
    """A name as a page has it: visible, and not longer than a line.

    Example:
        >>> len(shown_name("a" * 10_000))
        80
    """
    text = visible(name[: LONGEST_NAME + 1])
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…"


def shorten(word: str, most: int) -> str:
    """The word, or its beginning and how many characters are left out.

    Example:
        >>> shorten("a" * 50, 40)
        'aaaaaaaaaaaaaaaaaaaa… (30 more characters)'
    """
    if len(word) <= most:
        return word
    kept = max(most - 20, 1)
    return f"{word[:kept]}… ({len(word) - kept:,} more characters)"


def window(sizes: Sequence[int], middle: int, room: int) -> tuple[int, int]:
    """The widest half-open range around a word whose sizes sum to at most ``room``; that word is always in it.

    Example:
        >>> window([5, 5, 5, 5], 2, 15), window([50], 0, 15), window([], 0, 15)
        ((1, 4), (0, 1), (0, 0))
    """
    if not sizes:
        return 0, 0
    first, last, used = middle, middle + 1, sizes[middle]
    grown = True
    while grown and last - first < MAX_TOKENS:
        grown = False
        if last < len(sizes) and used + sizes[last] <= room:
            used, last, grown = used + sizes[last], last + 1, True
        if first > 0 and last - first < MAX_TOKENS and used + sizes[first - 1] <= room:
            used, first, grown = used + sizes[first - 1], first - 1, True
    return first, last


def in_view(words: Sequence[str], selected: int) -> tuple[int, int]:
    """The half-open range of words around the selected one that a page shows as text.

    Example:
        >>> in_view(["w"] * 1_000, 700)
        (576, 826)
    """
    return window([min(len(word), ROOM) + BESIDE_WORD for word in words], selected, ROOM)
