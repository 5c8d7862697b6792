"""Makes a notebook of a script with ``# %%`` cells: ``python scripts/notebook.py scripts/NAME.py docs/NAME.ipynb``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def cells(script: str) -> list[dict[str, Any]]:
    """The cells of a script; what stands before the first mark is left out."""
    found = []
    for i, part in enumerate(script.split("\n# %%")[1:]):
        mark, _, body = part.partition("\n")
        lines = body.strip("\n").split("\n")
        kind = "markdown" if mark.strip() == "[markdown]" else "code"
        if kind == "markdown":
            lines = [line.removeprefix("#").removeprefix(" ") for line in lines]
        source = [f"{line}\n" for line in lines[:-1]] + lines[-1:]
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell{i}", "metadata": {}, "source": source}
        found.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    return found


def notebook(script: str) -> str:
    """The notebook as JSON."""
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    whole = {"cells": cells(script), "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(notebook(source.read_text(encoding="utf-8")), encoding="utf-8")
