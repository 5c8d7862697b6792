"""What a notebook shows of answers, data and readings: their numbers, in words, and no text of a user's unescaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_maxmargin import solve_att_svm, solve_joint_svm, solve_label_svm
from lightning_maxmargin.core import Sequences
from lightning_maxmargin.data import PaperData, RandomData, RandomInstances
from lightning_maxmargin.figures.shaded import ShadedText, ShadedTexts
from lightning_maxmargin.html_table import block, mark, table, words, writable
from lightning_maxmargin.text.readings import Reading, Word
from lightning_maxmargin.text.show import text_data_html

KEYS = torch.tensor([[[0.0, 0], [1, 1]], [[0, 0], [1, -1]], [[0, 0], [0.5, 1.5]]])
LABELS, SELECTED = torch.tensor([1, -1, 1]), torch.tensor([1, 1, 1])
VOID = {"img", "br"}
#: All that may come out; everything else would be a user's.
TAGS = {"div", "strong", "span", "table", "thead", "tbody", "tr", "th", "td", "bdi", "details", "summary", *VOID}


class Reader(HTMLParser):
    """Text and elements of a page, which must be well nested and hold nothing but ours."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.said: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS
        assert {name for name, _ in attrs} <= {"style", "scope", "title", "src", "alt"}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.said += [] if tag in ("span", "bdi") else [" "]

    def handle_data(self, data: str) -> None:
        self.said.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.said).split())


def said(shown: Any) -> str:
    """The text of what a notebook shows of this."""
    page = shown if isinstance(shown, str) else shown._repr_html_()
    page.encode("utf-8")  # as a notebook keeps it
    return Reader(page).text


def test_a_certified_answer_is_shown_with_its_numbers() -> None:
    solution = solve_att_svm(KEYS, SELECTED)
    shown = said(solution)
    assert "certified" in shown
    assert "(1.25, 0.25)" in shown
    assert f"{solution.margin:.4g}" in shown
    assert solution.message in shown


def test_an_infeasible_answer_is_shown_as_such_and_in_another_colour() -> None:
    solution = solve_label_svm(torch.tensor([[1.0], [1.0]]), torch.tensor([1, -1]))
    assert "infeasible" in said(solution)
    assert "combine 2 rows to zero" in said(solution)
    colours = [re.findall("background:(#.{6})", x._repr_html_()) for x in (solution, solve_att_svm(KEYS, SELECTED))]
    assert colours[0] != colours[1]


def test_a_large_direction_is_shown_by_its_shape() -> None:
    g = torch.Generator().manual_seed(0)
    keys = torch.randn(3, 4, 50, generator=g)
    assert "of shape (50,)" in said(solve_att_svm(keys, torch.zeros(3, dtype=torch.int64)))


def test_nothing_to_separate_is_shown() -> None:
    assert "∞" in said(solve_att_svm(torch.ones(2, 1, 3), torch.zeros(2, dtype=torch.int64)))


def test_a_matrix_and_another_norm_are_shown() -> None:
    shown = said(solve_att_svm(KEYS, SELECTED, queries=KEYS[:, 1], norm="nuclear"))
    assert "in the norm nuclear" in shown
    assert "unique None" in shown


def test_a_stack_is_counted_and_cut() -> None:
    batch = solve_label_svm(torch.ones(12, 2, 1), torch.tensor([[1, 1]] * 11 + [[1, -1]]))
    shown = said(batch)
    assert "11 certified 1 infeasible" in shown
    assert "… and 2 more" in shown
    assert "[9]" in shown
    assert "[10]" not in shown


@pytest.mark.parametrize("limit", ["strict", "relaxed", "rate_coupled"])
def test_a_joint_answer_shows_attention_and_head(limit: str) -> None:
    shown = said(solve_joint_svm(KEYS, KEYS, LABELS, SELECTED, limit=limit, norm_ratio=0.5))
    assert limit.replace("_", "-") in shown
    assert shown.index("attention") < shown.index("head")
    assert shown.count("certified") >= 2
    stacked = solve_joint_svm(KEYS[None], KEYS[None], LABELS[None], SELECTED[None], limit=limit, norm_ratio=0.5)
    assert "1 certified" in said(stacked)


def test_sequences_are_shown_with_what_they_have() -> None:
    data = Sequences.pad([torch.ones(2, 3), torch.ones(1, 3)], torch.tensor([1.0, -1.0]), planted=torch.tensor([1, 0]))
    shown = said(data)
    parts = ("Sequences: 2", "(2, 2, 3)", "1 of -1, 1 of 1", "padding 25.0%", "48 bytes", "float32 on cpu", "planted 2")
    for part in parts:
        assert part in shown


def test_sequences_of_all_kinds_are_shown() -> None:
    many = RandomInstances(B=3, n=4, T=5, d=2, repeats=2, ragged=True, queries=True).sequences("train")
    assert many is not None
    assert "instances 6" in said(many)
    assert "queries" in said(many)
    assert said(many[:0]).startswith("Sequences: 0")
    assert "values (1, 3, 3)" in said(PaperData("single_local").sequences("train"))


def test_a_data_module_is_shown_before_and_after_it_is_read() -> None:
    data = RandomData(n=4, T=3, d=2, seed=5, batch_size=2)
    assert "not read yet" in said(data)
    assert "seed=5" in said(data)
    data.train_dataloader()
    assert "train 4 3 2 " in said(data)


def reading_of(text: str) -> Reading:
    word = Word(text, 0, len(text), 0.5, -1.0)
    return Reading(text, 0.75, {text: 0.75, "b": 0.25}, [word, word], None, 0.5)


def test_a_reading_is_shown_shaded() -> None:
    both = [Word("rare", 0, 4, 0.8, 1.0), Word("dull", 5, 9, 0.2, -1.0)]
    page = Reading("good", 0.9, {}, both, 0.3, 0.5)._repr_html_()
    assert re.search(r"rgba\(0,114,178,0\.6\d+\)[^>]*>rare<", page)
    assert re.search(r"rgba\(213,94,0,0\.1\d+\)[^>]*>dull<", page)
    assert "good rare dull probability 0.9 of this label lead 0.3" in said(page)


def text_data_of(text: str, read: bool) -> Any:
    """What text_data_html reads of a TextData."""
    documents = SimpleNamespace(labels=[text, text, "b"])
    pieces = SimpleNamespace(starts=np.array([0, 3, 4, 9]), truncated=np.array([False, True, False]))
    split = type("Split", (), {"documents": documents, "pieces": pieces, "__len__": lambda self: 3})()
    spec = SimpleNamespace(encoder=text, units="words", key_layer=4, value_layer=4, max_length=128)
    return SimpleNamespace(
        spec=spec, sources={"train": text, "val": None}, splits={text: split} if read else {}, batch_size=32, seed=0
    )


def test_documents_are_shown_before_and_after_they_are_read() -> None:
    assert "not read yet" in said(text_data_html(text_data_of("a", False)))
    assert "a 3 2 of a, 1 of b median 3, at most 5 1" in said(text_data_html(text_data_of("a", True)))


MARKUP = ("<script>alert(1)</script>", "</td></table>", '" onmouseover="x', "<!--", "&lt;", "]]>", "<bdi")
HOSTILE = st.text(st.characters(codec=None), max_size=30) | st.sampled_from([*MARKUP, "\ud800", "\x00", "\u202e"])


@settings(max_examples=60, deadline=None)
@given(HOSTILE)
def test_text_of_a_user_comes_out_as_text(text: str) -> None:
    """By a reader that knows our tags alone, wherever a text of a user's is shown."""
    shaded = ShadedTexts(text, [ShadedText(text, [text, "a"], [0.6, 0.4]), ShadedText(text, [], [])])
    pages = [block(text, text, mark(text), table([(text, words(text))], [text])), shaded._repr_html_()]
    pages += [reading_of(text)._repr_html_(), text_data_html(text_data_of(text, True))]
    for page in pages:
        assert " ".join(writable(text).split()) in said(page)
    str(shaded).encode("utf-8")
