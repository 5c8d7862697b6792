"""docs/extending.md, read by its sections: the files it shows, the commands it gives, the messages it promises."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.conftest import ROOT

TITLES = (
    "A loss", "An optimizer with its norm", "A norm", "A data source", "An encoder", "A metric, with its key",
    "A limit problem", "An experiment",
)  # fmt: skip


@dataclass(frozen=True)
class Section:
    """What one section shows.

    Attributes:
        files: their text, by name.
        scripts: other Python.
        commands: lines of the shell.
        messages: second column of its table.
    """

    files: dict[str, str]
    scripts: list[str]
    commands: list[str]
    messages: list[str]


def sections() -> dict[str, Section]:
    """By title, the table of files to touch left out."""
    parts = re.split(r"^## (.+)$", (ROOT / "docs" / "extending.md").read_text(), flags=re.MULTILINE)
    return {title: _section(text) for title, text in zip(parts[1::2], parts[2::2], strict=True)}


def _section(text: str) -> Section:
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    named = {m.group(1): block for block in blocks if (m := re.match(r"# file: (\S+)\n", block))}
    commands = re.findall(r"^```bash\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return Section(
        named,
        [block for block in blocks if block not in named.values()],
        [line for block in commands for line in block.splitlines()],
        [m.group(1) for m in re.finditer(r"^\| [^|]+ \| `(.+)` \|$", text, flags=re.MULTILINE)],
    )
