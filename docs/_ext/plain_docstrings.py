"""Docstrings as this package writes them: norms between bars are no substitutions, and properties have no types."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

#: Stands for a colon while napoleon reads.
COLON = "\ue000"
LITERAL = re.compile(r"(``.*?``|`[^`]+`)")


def no_type(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Keeps napoleon from taking the words before a colon for the type of an attribute or property."""
    if what in ("attribute", "property", "data") and lines:
        lines[0] = lines[0].replace(":", COLON)


def plain(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """|u| is a size, not a substitution of docutils; colons come back."""
    lines[:] = [line.replace(COLON, ":") for line in lines]
    for at, line in enumerate(lines):
        if "|" in line and not line.lstrip().startswith((">>>", "...")):
            parts = LITERAL.split(line)
            lines[at] = "".join(part if part.startswith("`") else part.replace("|", "\\|") for part in parts)


def setup(app: Sphinx) -> dict[str, Any]:
    # Before napoleon's 500, and after it.
    app.connect("autodoc-process-docstring", no_type, priority=400)
    app.connect("autodoc-process-docstring", plain, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
