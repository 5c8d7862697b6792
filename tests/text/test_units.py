"""Pieces, words and sentences by offsets, over texts of any script and of a real tokenizer."""

from __future__ import annotations

import re
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text.packages import MINILM, packaged
from lightning_maxmargin.text.units import UNITS, Units, marked, sentence_spans, sum_by, units_of, word_spans

MISSING = [name for name in ("tokenizers", MINILM) if find_spec(name) is None]
needs_tokenizer = pytest.mark.skipif(bool(MISSING), reason=f"the text extra is missing: {', '.join(MISSING)}")
needs_syntok = pytest.mark.skipif(find_spec("syntok") is None, reason="the text extra is missing: syntok")
ALL_UNITS = ["pieces", "words", pytest.param("sentences", marks=needs_syntok)]

TEXT = st.one_of(
    st.text(max_size=40),
    st.text(st.sampled_from("ab.!? \n\t\u3000\u200b'\"()A1我。é😀\x1c"), max_size=60),
    st.lists(st.sampled_from(["It's", "Mr. Bean", "fun.", "No!", "\n\n", " ", "(e.g. this)"]), max_size=12).map(
        " ".join
    ),
)


@st.composite
def pieced(draw: st.DrawFn) -> tuple[str, list[tuple[int, int]], list[int]]:
    """A text, and pieces that cover it with spaces before, over several words, empty or of half a character."""
    text = draw(TEXT)
    cuts = draw(st.lists(st.integers(0, len(text)), max_size=15))
    ends = sorted({0, len(text), *cuts})
    offsets = [(0, 0), *pairwise(ends)]
    if len(offsets) > 1 and draw(st.booleans()):
        offsets.append(offsets[-1])
    return text, offsets, [1] + [0] * (len(offsets) - 1)


@pytest.mark.parametrize("units", ALL_UNITS)
@given(given_pieces=pieced())
def test_units_hold_their_pieces(units: str, given_pieces: tuple[str, list[tuple[int, int]], list[int]]) -> None:
    text, offsets, special = given_pieces
    found = units_of(text, offsets, special, units)
    assert len(found.ids) == len(offsets)
    assert sorted({i for i in found.ids if i >= 0}) == list(range(len(found.spans)))
    for start, end in found.spans:
        assert 0 <= start < end <= len(text)
        assert text[start:end] == text[start:end].strip()
    for (start, end), mark, i in zip(offsets, special, found.ids, strict=True):
        assert (i >= 0) == (not mark and bool(text[start:end].strip()))
        if i >= 0:
            first = start + len(text[start:end]) - len(text[start:end].lstrip())
            assert found.spans[i][0] <= first < found.spans[i][1]
    if units != "pieces":
        assert all(a[1] <= b[0] for a, b in pairwise(found.spans))
        ids = [i for i in found.ids if i >= 0]
        assert ids == sorted(ids)


@given(TEXT)
def test_words_partition_the_text(text: str) -> None:
    spans = word_spans(text).tolist()
    assert [text[a:b] for a, b in spans] == text.split()
    rest = "".join(text[a:b] for (_, a), (b, _) in zip([[0, 0], *spans], [*spans, [len(text), 0]], strict=True))
    assert not rest.strip()


@needs_syntok
@given(TEXT)
def test_sentences_hold_every_character_but_space(text: str) -> None:
    spans = sentence_spans(text)
    assert re.sub(r"\s", "", "".join(text[a:b] for a, b in spans)) == re.sub(r"\s", "", text)
    assert all(a[1] <= b[0] for a, b in pairwise(spans))


@needs_syntok
@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", []),
        (" \n ", []),
        ("Mr. Bean is fun. Is it?  Yes", ["Mr. Bean is fun.", "Is it?", "Yes"]),
        ("a title\n\nIt begins, e.g. here.", ["a title", "It begins, e.g. here."]),
        ("我喜欢。「你呢？」好", ["我喜欢。", "「你呢？」", "好"]),
    ],
)
def test_sentences_of_known_texts(text: str, sentences: list[str]) -> None:
    assert [text[a:b] for a, b in sentence_spans(text)] == sentences


@needs_syntok
@pytest.mark.parametrize("broken", ["raises", "descends"])
def test_a_text_that_syntok_fails_on_is_cut_at_full_stops(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    from syntok import segmenter
    from syntok.tokenizer import Token

    def analyze(text: str) -> Any:
        if broken == "raises":
            raise RuntimeError("no")
        return [[[Token("", "x", 5)], [Token("", "x", 2)]]]

    monkeypatch.setattr(segmenter, "analyze", analyze)
    assert sentence_spans("One. Two!\n\nThree") == [(0, 4), (5, 9), (11, 16)]


def test_the_first_of_several_words_has_the_piece_and_units_without_one_are_dropped() -> None:
    text = "one two three four"
    assert units_of(text, [(0, 7), (7, 8), (8, 13)], [0, 0, 0]) == Units([0, -1, 1], [(0, 3), (8, 13)])
    assert units_of(text, [(3, 7)], [0], "pieces") == Units([0], [(4, 7)])
    assert units_of("", [(0, 0)], [0]) == Units([-1], [])
    assert units_of("a", [], []) == Units([], [])


@needs_syntok
def test_a_sentence_behind_the_truncation_is_dropped() -> None:
    text = "One is here. Two is there. " * 500
    assert units_of(text, [(0, 3), (13, 16)], [0, 0], "sentences") == Units([0, 1], [(0, 12), (13, 26)])


def test_bad_units_are_one_line() -> None:
    with pytest.raises(InputError, match=r"^data.units: 'lines'; expected one of pieces, words, sentences$"):
        units_of("a", [(0, 1)], [0], "lines")
    with pytest.raises(InputError, match="1 offsets of pieces and 0 marks of special ones"):
        units_of("a", [(0, 1)], [])


SPANS = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)).map(lambda p: (p[0], p[0] + p[1])), max_size=6)


@given(SPANS, SPANS)
def test_marked_is_an_overlap(spans: list[tuple[int, int]], rationale: list[tuple[int, int]]) -> None:
    expected = [any(a < d and c < b for c, d in rationale) for a, b in spans]
    assert marked(spans, rationale) == expected


@given(st.text(st.sampled_from("ab \n"), min_size=41, max_size=41), SPANS, SPANS)
def test_marked_by_a_character_that_is_no_space(text: str, units: Any, rationale: Any) -> None:
    spans = [(a, b) for a, b in units if not text[a].isspace() and not text[b - 1].isspace()]
    expected = [any(text[max(a, c) : min(b, d)].strip() for c, d in rationale) for a, b in spans]
    assert marked(spans, rationale, text) == expected


def test_sums_by_unit() -> None:
    ids = torch.tensor([[-1, 0, 0, 1], [0, 2, -1, 2]])
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]], requires_grad=True)
    sums = sum_by(ids, values, 3)
    assert sums.tolist() == [[5.0, 4.0, 0.0], [5.0, 0.0, 14.0]]
    sums.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[0.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 1.0]]
    assert sum_by([], torch.zeros(0), 2).tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="different shapes"):
        sum_by([0], torch.zeros(2), 1)
    for bad in (-2, 1):
        with pytest.raises(ValueError, match=f"ids from {bad} to {bad}; expected -1 to 0"):
            sum_by([bad], torch.zeros(1), 1)


@needs_tokenizer
@needs_syntok
def test_pieces_of_a_real_tokenizer() -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(packaged(MINILM, "model/tokenizer.json")))
    tokenizer.no_padding()
    text = "It isn't unwatchable, naïve 😀 this. Mr. Bean's\x00 (new) film—superb!"
    encoding = tokenizer.encode(text)
    by = {units: units_of(text, encoding.offsets, encoding.special_tokens_mask, units) for units in UNITS}
    words = [text[a:b] for a, b in by["words"].spans]
    assert words == text.split()
    assert [text[a:b] for a, b in by["sentences"].spans] == [text[: text.index(" Mr.")], text[text.index("Mr.") :]]
    for units in by.values():
        assert [i < 0 for i in units.ids] == [bool(mark) for mark in encoding.special_tokens_mask]
    assert len(by["pieces"].spans) == len(encoding.ids) - 2
    of_word = [t for t, i in zip(encoding.tokens, by["words"].ids, strict=True) if i == 2]
    assert "".join(of_word).replace("#", "") == "unwatchable,"
    assert marked(by["words"].spans, [(3, 9), (36, 40)], text) == [i in (1, 6) for i in range(10)]
