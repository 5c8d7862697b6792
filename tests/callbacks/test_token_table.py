"""The table of tokens that W&B gets: every text as one reads it, and nothing in it that a browser would run."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.loggers import WandbLogger

from lightning_maxmargin.callbacks.token_table import log_tokens, token_table
from tests.wandb_files import said

HOSTILE = "<script>alert('x')</script>"
ROWS: list[dict[str, Any]] = [
    {"index": 3, "label": "good", "prediction": "bad", "tokens": ["so", "very", "fine"],
     "attention": [0.2, 0.0, 0.8], "selected": 2, "evidence": [0.5, 0.0, -1.0], "probability": 0.75},
    {"index": 4, "label": "good", "prediction": "good", "tokens": [HOSTILE, '"&amp;" onmouseover="x', "a\0b", "שלום"],
     "attention": [0.4, 0.3, 0.2, 0.1], "selected": 0, "probability": None},
]  # fmt: skip


class Spans(HTMLParser):
    """The words of a shaded text with their attributes, and every tag that there is."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag == "span":
            self.words.append(("", dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.words and not data.isspace():
            word, attributes = self.words[-1]
            self.words[-1] = (word + data, attributes)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Spans]:
    """The shaded texts as an offline run has them on disk, in the order of its table."""
    folder = tmp_path_factory.mktemp("tokens")
    logger = WandbLogger(save_dir=folder, offline=True, settings={"silent": True})
    log_tokens([logger], ROWS, step=7)
    logger.experiment.finish()
    # W&B keeps what is more than text in the table's artifact.
    [artifact] = said(folder, "artifact")
    files = {entry["path"]: Path(entry["local_path"]) for entry in artifact["manifest"]["contents"]}
    table = json.loads(files["tokens.table.json"].read_text(encoding="utf-8"))
    at = table["columns"].index("shaded")
    return [Spans(files[row[at]["path"]].read_text(encoding="utf-8")) for row in table["data"]]


def test_the_text_is_readable_in_its_order(pages: list[Spans]) -> None:
    assert pages[0].text.split() == ["so", "very", "fine"]
    assert [word for word, _ in pages[1].words] == [HOSTILE, '"&amp;" onmouseover="x', "a␀b", "שלום"]


def test_words_are_shaded_by_weight_and_side_and_the_selected_one_outlined(pages: list[Spans]) -> None:
    styles = [attributes["style"] for _, attributes in pages[0].words]
    assert "30,110,200" in styles[0], "for the prediction"
    assert "background" not in styles[1], "no weight"
    assert "210,90,30" in styles[2], "against it"
    light, dark = (float(re.search(r",([\d.]+)\)", styles[i])[1]) for i in (0, 2))  # type: ignore[index]
    assert 0 < light < dark
    assert ["outline" in style for style in styles] == [False, False, True]
    assert "0.800" in pages[0].words[2][1]["title"]


def test_hostile_text_stays_text(pages: list[Spans]) -> None:
    for page in pages:
        assert page.tags == ["p", *["span"] * len(page.words)]
        assert all(attributes.keys() == {"style", "title"} for _, attributes in page.words)


def test_the_other_columns_are_plain() -> None:
    columns, cells = token_table(ROWS)
    first, second = (dict(zip(columns, row, strict=True)) for row in cells)
    assert (first["text"], first["selected"], first["weight"]) == ("so very fine", "fine", 0.8)
    assert (first["probability"], second["probability"]) == (0.75, None)
    assert second["text"].startswith(HOSTILE)
    assert "entropy" not in columns
