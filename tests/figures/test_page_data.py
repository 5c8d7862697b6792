"""The documents of a page: every one where there is room, and never more bytes than there are."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest

from lightning_maxmargin.figures.assets import as_json
from lightning_maxmargin.figures.page_curves import POINTS, as_data, text_panels, theory_panels
from lightning_maxmargin.figures.page_data import Reading, Row, fit, json_bytes, pack
from lightning_maxmargin.figures.read import Metrics


def document(i: int, words: int, length: int = 5) -> Row:
    weights = np.linspace(0, 1, words) / max(words, 1)
    texts = [f"{k}{'é<' * length}" for k in range(words)]
    return Row([i, "good", "right"], [Reading(texts, weights.tolist(), (-weights).tolist(), [0], max(words - 1, 0))])


@pytest.mark.parametrize(
    ("count", "words", "room", "left_out"),
    [(100, 30, 100_000, 0), (100, 2_000, 100_000, 0), (2_000, 300, 2_000_000, 0), (1_000, 50, 50_000, 1)],
    ids=["short", "long", "many", "too many"],
)
def test_documents_fit_into_their_room(count: int, words: int, room: int, left_out: bool) -> None:
    found = fit([document(i, words) for i in range(count)], room)
    assert len(as_json(found.rows).encode()) <= room
    assert (found.left_out > 0) == left_out
    assert len(found.rows) + found.left_out == count
    for (cells, reading), i in zip(found.rows, range(count), strict=False):
        texts, weights, evidence, _, _, before, after = reading
        assert cells[0] == i
        assert before + len(texts) + after == words
        assert len(texts) == len(weights) == len(evidence) > 0
        assert texts[-1].startswith(str(words - 1))  # the heaviest word is in the window


def test_nothing_is_no_document() -> None:
    assert fit([], 1_000) == ([], 0, 0)
    assert pack(Reading([], [], None, [], 0), 1_000) == ([[], [], [], 0.0, [], 0, 0], False)


def test_one_endless_word_is_shortened() -> None:
    packed, is_cut = pack(Reading(["x" * 10**6], [1.0], [float("nan")], [0], 0), 250)
    assert is_cut
    assert json_bytes(packed) < 250
    assert packed[0][0].endswith("more characters)")


def test_bytes_are_those_of_the_page() -> None:
    for value in (["<script>", "é", "\u2028"], [1, 2.5, None], "\x01"):
        assert json_bytes(value) == len(as_json(value).encode())
        assert json.loads(as_json(value)) == value
        assert "<" not in as_json(value)


def test_curves_are_thinned_and_joined() -> None:
    steps = np.arange(0, 20_000, 5)
    nan = np.full(len(steps), np.nan)
    some = nan.copy()
    some[::100] = 0.5
    metrics = Metrics(steps, {"train/loss": 1.0 / (1 + steps), "val/loss": some, "val/accuracy": some})
    loss, accuracy = as_data(text_panels({"": metrics}, {"": 0.4}))
    assert [line["label"] for line in loss["lines"]] == ["training", "validation"]
    assert POINTS <= len(loss["data"][0]) <= 2 * POINTS
    assert all(a < b for a, b in pairwise(loss["data"][0]))
    assert loss["data"][0][-1] == 19_995
    assert sum(y is not None for y in loss["data"][2]) == 40
    assert [line["label"] for line in accuracy["lines"]] == ["validation", "mean pooling"]


def test_a_logarithmic_axis_shows_what_it_can() -> None:
    gap = {"direction_gap/strict": np.array([0.1, 0.0, 1e-3]), "norm/attention": np.array([0.0, 1.0, 200.0])}
    panels = theory_panels(Metrics(np.array([0, 1, 2]), gap))
    [panel] = as_data(panels)
    assert panel["logX"]
    assert panel["logY"]
    assert panel["data"] == [[1.0, 200.0], [1e-17, 1e-3]]
