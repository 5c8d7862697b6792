"""The short form of the fuzz, and that it would tell a wrong answer."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from lightning_maxmargin import solve_att_svm
from tests.reliability import fuzz
from tests.reliability.scenario import assert_none_failed


def test_drawn_input() -> None:
    assert_none_failed(fuzz.trial, 100, seed=0)


def rows_of(keys: torch.Tensor, alpha: torch.Tensor) -> fuzz.Rows:
    return fuzz.attention_rows(keys, alpha, torch.ones(keys.shape[:2], dtype=torch.bool), None)


def test_a_wrong_certificate_is_told() -> None:
    keys = torch.tensor([[[-0.1, 1.0], [1.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    alpha = torch.tensor([0])
    found, rows = solve_att_svm(keys, alpha), rows_of(keys, alpha)
    assert found.certified
    assert fuzz.wrong_answer(found, rows) is None
    turned = found.direction + 1e-3 * torch.tensor([1.0, 0.0])
    for wrong, said in (
        (replace(found, direction=found.direction * (1 - 1e-6)), "a row is missed"),
        (replace(found, direction=found.direction * 1.1 + torch.tensor([1.0, 1.0])), "certified with a gap"),
        (replace(found, direction=turned), "certified with a gap|a row is missed"),
        (replace(found, dual=-found.dual), "negative"),
        (replace(found, dual=found.dual + 1.0), "negative or of no row"),
        (replace(found, direction=found.direction * torch.nan), "not finite"),
    ):
        told = fuzz.wrong_answer(wrong, rows)
        assert told is not None
        assert any(words in told for words in said.split("|")), told


def test_a_wrong_farkas_vector_is_told() -> None:
    keys = torch.tensor([[[0.0, 0.0], [1.0, 0.5], [-1.0, -0.5]]], dtype=torch.float64)
    alpha = torch.tensor([0])
    found, rows = solve_att_svm(keys, alpha), rows_of(keys, alpha)
    assert found.infeasible
    assert fuzz.wrong_answer(found, rows) is None
    wrong = replace(found, dual=found.dual * torch.tensor([[1.0, 1.0 + 1e-9, 1.0]], dtype=torch.float64))
    assert fuzz.wrong_answer(wrong, rows) == "silent: infeasible by a vector that shows nothing"


def test_a_seed_is_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """And an error of any kind is a failure with a name, not the end of all."""

    def broken(rng: random.Random) -> str | None:
        raise KeyError(rng.random())

    monkeypatch.setattr(fuzz, "OFTEN", {broken: 1})
    first, again = (fuzz.trial(random.Random("3-1")) for _ in range(2))
    assert first == again
    assert str(first).startswith("broken: KeyError: 0.")
