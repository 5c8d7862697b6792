"""The short form: a dozen runs that go on with one more word."""

from __future__ import annotations

from tests.reliability import resumed_words
from tests.reliability.scenario import assert_none_failed


def test_words_of_a_run_that_goes_on() -> None:
    assert_none_failed(resumed_words.trial, 12, seed=0)


def test_a_word_that_is_overridden_is_seen() -> None:
    kept = {"model": {"class_path": "M", "init_args": {"lr": 0.1}}, "data": {"seed": 1}}
    assert resumed_words.found(kept, "model.lr") == 0.1
    assert resumed_words.found(kept, "data.seed") == 1
    assert resumed_words.found(kept, "data.n") is None
