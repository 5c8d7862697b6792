"""HTML that a notebook shows in place of an object: tables, marks of a status and pictures, all text escaped.

Every style stands at its element: no script, nothing that reaches the page around it. Text has the colour of the page
and backgrounds are see-through, so that light and dark notebooks show the same.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from markupsafe import Markup, escape

#: Characters that HTML drops or that draw nothing, as the pictures that Unicode has of them.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f]")
#: Half of a pair of UTF-16, which no notebook can write to its file.
LONE = re.compile("[\ud800-\udfff]")
#: White text on these has a contrast of 5.0 and more, whatever is around.
COLORS = {"good": "#1A7F37", "bad": "#B42318", "open": "#8A5A00", "plain": "#57606A"}
#: How good news the statuses of an answer are.
STATUS_COLORS = {"certified": "good", "infeasible": "bad", "unverified": "open"}
CELL = "text-align:left;vertical-align:top;padding:2px 14px 2px 0;border:none;background:none"
FAINT = "opacity:.75"
#: Rows of a long table.
MOST_ROWS = 10


def visible(text: str) -> str:
    """The text with NUL and other control characters made visible, one for one; line ends stay.

    Example:
        >>> visible("a\\x00b")
        'a␀b'
    """
    return CONTROL.sub(lambda m: "\u2421" if m[0] == "\x7f" else chr(0x2400 + ord(m[0])), text.replace("\r\n", " \n"))


def writable(text: str) -> str:
    """The same with U+FFFD in the place of half a pair of UTF-16, so that it can be written to a notebook's file.

    Example:
        >>> writable("a\\ud800")
        'a�'
    """
    return LONE.sub("\ufffd", visible(text))


def text(x: object) -> Markup:
    """Anything as escaped text; what is markup already stays.

    Example:
        >>> text("<b>"), text(Markup("<b>"))
        (Markup('&lt;b&gt;'), Markup('<b>'))
    """
    return x if isinstance(x, Markup) else escape(writable(str(x)))


def words(x: object) -> Markup:
    """Text of a user's, which may run from right to left: it turns nothing around it."""
    return Markup("<bdi>{}</bdi>").format(text(x))


def number(x: float | None) -> str:
    """Four digits.

    Example:
        >>> number(1 / 3), number(1234567), number(None), number(float("inf"))
        ('0.3333', '1.235e+06', '—', '∞')
    """
    if x is None or math.isnan(x):
        return "—"
    if math.isinf(x):
        return "∞" if x > 0 else "−∞"
    return f"{x:,.0f}" if float(x).is_integer() and abs(x) < 1e6 else f"{x:.4g}"


def mark(word: str, kind: str = "plain") -> Markup:
    """A word on a colour.

    Args:
        word: which.
        kind: one of :data:`COLORS`, or a status.
    """
    color = COLORS[STATUS_COLORS.get(kind, kind)]
    style = f"background:{color};color:#FFFFFF;border-radius:4px;padding:1px 7px"
    return Markup('<span style="{}">{}</span>').format(style, text(word))


def table(rows: Iterable[Sequence[Any]], header: Sequence[str] = ()) -> Markup:
    """A table; the first cell of a row names it.

    Args:
        rows: of cells.
        header: of the columns.

    Example:
        >>> "&lt;" in table([("a", "<")])
        True
    """
    found = [Markup('<table style="border-collapse:collapse;margin:4px 0;border:none">')]
    if header:
        style = f"{CELL};font-weight:600"
        cells = Markup("").join(Markup('<th scope="col" style="{}">{}</th>').format(style, text(x)) for x in header)
        found.append(Markup("<thead><tr>{}</tr></thead>").format(cells))
    found.append(Markup("<tbody>"))
    for first, *rest in rows:
        style = f"{CELL};font-weight:400;white-space:nowrap"
        named = Markup('<th scope="row" style="{}">{}</th>').format(style, text(first))
        cells = Markup("").join(Markup('<td style="{}">{}</td>').format(CELL, text(x)) for x in rest)
        found.append(Markup("<tr>{}{}</tr>").format(named, cells))
    found.append(Markup("</tbody></table>"))
    return Markup("").join(found)


def faint(x: object) -> Markup:
    """Text in the second row: meanings, notes."""
    return Markup('<span style="{}">{}</span>').format(FAINT, text(x))


def paragraph(x: object) -> Markup:
    """A line of its own."""
    return Markup('<div style="margin:4px 0">{}</div>').format(text(x))


def details(summary: object, body: object) -> Markup:
    """What a click unfolds."""
    style = f"cursor:pointer;{FAINT}"
    return Markup('<details style="margin:4px 0"><summary style="{}">{}</summary>{}</details>').format(
        style, text(summary), text(body)
    )


def picture(png: bytes, about: str) -> Markup:
    """An image that stands in the page itself.

    Args:
        png: its file.
        about: what is seen, for who does not see it.
    """
    data = base64.b64encode(png).decode("ascii")
    style = "max-width:100%;width:720px;margin:6px 0;background:#FFFFFF"
    return Markup('<img src="data:image/png;base64,{}" alt="{}" style="{}">').format(data, text(about), style)


def block(title: object, *parts: object) -> str:
    """What ``_repr_html_`` returns: a title and what stands under it."""
    style = "margin:4px 0;line-height:1.45"
    head = Markup('<div style="margin:0 0 2px"><strong>{}</strong></div>').format(text(title))
    body = Markup("").join(text(part) for part in parts)
    return str(Markup('<div style="{}">{}{}</div>').format(style, head, body))


def rest_of(count: int, shown: int) -> Markup:
    """That a table goes on, nothing where it does not."""
    return Markup("") if count <= shown else paragraph(faint(f"… and {count - shown:,} more"))
