"""A page with a table of documents: the frame that the report and the comparison share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_maxmargin.figures.assets import as_json, fill_template, page_scripts, page_styles
from lightning_maxmargin.figures.page_data import PAGE_BYTES, Column, Fitted, Row, fit
from lightning_maxmargin.figures.terms import Terms

#: Bytes kept for the names of the columns and for the sentence of how many documents are left out.
RESERVE = 20_000


class Figure(NamedTuple):
    """A figure of the page: its bytes as base64, what it shows, its caption, and whether curves take its place."""

    image: str
    title: str
    caption: str
    result: str
    replaced: bool


def fill_page(
    template: str, names: Mapping[str, Any], columns: Sequence[Column], rows: Sequence[Row], readings: Sequence[str]
) -> str:
    """A page with a table of documents, which get the room that the rest of the page leaves of 3 MB.

    Args:
        template: its name in this folder.
        names: what it draws beside the documents.
        columns: of the table.
        rows: the documents.
        readings: the names of the models that read each document, empty where there is one.
    """
    path = Path(__file__).with_name(template)
    names = {**names, "scripts": page_scripts(), "styles": page_styles()}

    def filled(found: Fitted) -> str:
        data = {
            "columns": [column._asdict() for column in columns], "readings": list(readings), "rows": found.rows,
            "signed": any(reading.evidence is not None for row in rows for reading in row.readings),
        }  # fmt: skip
        documents = as_json(data) if found.rows else ""
        return fill_template(
            path, **names, term=Terms(), documents_data=documents, left_out=found.left_out, cut=found.cut
        )

    room = PAGE_BYTES - RESERVE - len(filled(Fitted([], 0, 0)).encode("utf-8", "replace"))
    return filled(fit(rows, room))
