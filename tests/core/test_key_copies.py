"""A token with the selected one's key and another value pulls nowhere, at any norm, whatever weight it has."""

from __future__ import annotations

import itertools

import pytest
import torch

from lightning_maxmargin.core import Sequences, exact_directions, sequences
from lightning_maxmargin.core.batch import Instances
from lightning_maxmargin.core.copies import find_copies
from lightning_maxmargin.core.ensemble import EnsembleState
from lightning_maxmargin.metrics import direction_gap
from lightning_maxmargin.svm import solve_att_svm
from tests.core.copy_cases import KINDS, ROUTES, Case, answers, draw_case, reference, relative_error, underflows
from tests.core.exact_reference import f64, margin_loss, random_data, train_exact, with_mpmath


def assert_right(cases: list[Case], route: str) -> None:
    for case, got in zip(cases, answers(cases, route), strict=True):
        if route == "centred" and underflows(case):
            continue
        true, allowed = reference(case, route)
        floor = 1e-9 if got.dtype == torch.float64 else 0.0
        assert relative_error(got, true) <= max(allowed, floor), (case.kind, case.gap)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("queries", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("route", ROUTES)
def test_directions_match_mpmath(route: str, kind: str, dtype: torch.dtype, queries: bool, mask: bool) -> None:
    gaps = (1.0, 30.0, 100.0, 1e4)
    assert_right([draw_case(kind, 2 * s, gap, dtype, queries, mask) for s, gap in enumerate(gaps)], route)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_directions_match_mpmath_over_many(kind: str) -> None:
    for dtype, queries, mask in itertools.product((torch.float64, torch.float32), (False, True), (False, True)):
        gaps = torch.logspace(0, 4, 24, dtype=torch.float64).tolist()
        cases = [draw_case(kind, 1000 + 2 * s, gap, dtype, queries, mask) for s, gap in enumerate(gaps)]
        for route in ROUTES:
            assert_right(cases, route)


def test_a_sum_of_weights_would_have_been_wrong() -> None:
    """What the differences are for: the pull of all weights at once is rounding of the copy's."""
    case = draw_case("one copy", 0, 100.0, torch.float64, queries=False, mask=False)
    true, _ = reference(case)
    a = case.scores
    s = a.softmax(1)
    token_values = case.data.values @ case.v
    c = token_values - (s * token_values).sum(1, keepdim=True)
    naive = (case.data.labels[:, None] * s * c).reshape(-1) @ case.data.keys.reshape(-1, 3)
    assert relative_error(naive, true) > 0.1


def test_the_weights_of_copies_are_not_counted() -> None:
    """One-hot differences: the direction lists the weights, and those of the others sum to 1."""
    keys = f64([[[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]])
    data = Sequences(keys, f64([1]), values=f64([[[1], [3], [0], [-1]]]))
    scores = f64([[0.0, 0.0, -200.0, -201.0]])
    got = exact_directions(data, scores, f64([1]), margin_loss("logistic"))
    assert float(got.attention[1:].abs().sum()) == pytest.approx(1, rel=1e-14)
    true = with_mpmath(data, scores, f64([1]), "logistic")
    torch.testing.assert_close(got.attention, true["attention"], rtol=1e-13, atol=0)
    torch.testing.assert_close(got.log_attention, true["log_attention"], rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_copies_alone_pull_nowhere(dtype: torch.dtype) -> None:
    data = Sequences(
        torch.ones(2, 3, 2, dtype=dtype), torch.ones(2, dtype=dtype), values=random_data(0, 2, 3, 2).keys.to(dtype)
    )
    got = exact_directions(data, torch.zeros(2, 3, dtype=dtype), torch.ones(2, dtype=dtype), margin_loss("logistic"))
    assert not got.attention.any()
    assert float(got.log_attention) == -torch.inf
    state = EnsembleState(Instances.stack(data.keys[None], data.labels[None], data.values[None]), head_lr=1.0)
    state.run(3)
    assert not state.attention.any()
    assert state.head.any()


@pytest.mark.parametrize("accelerated", [False, True])
def test_training_with_copies_reaches_the_svm(accelerated: bool) -> None:
    """The direction goes to the SVM, in which copies have no row, at norms where e^-gap is far below rounding."""
    # Of seeds 0 to 9 those at which steps of 1 from zeros reach these tokens, too: 0, 5, 6 and 7.
    g = torch.Generator().manual_seed(0)
    keys = torch.randn(4, 5, 6, generator=g, dtype=torch.float64)
    values = torch.randn(4, 5, 3, generator=g, dtype=torch.float64)
    v = f64([1.0, 0.0, 0.0])
    labels = f64([1.0, -1.0, 1.0, -1.0])
    # The first two tokens are the best, with one key and two values.
    values[:, 0, 0], values[:, 1, 0] = 4 * labels, 3 * labels
    keys[:, 1] = keys[:, 0]
    data = Sequences(keys, labels, values=values)
    svm = solve_att_svm(keys, torch.zeros(4, dtype=torch.long))
    steps = 1000
    p, _ = train_exact(data, [0.0] * 6, v.tolist(), [steps], joint=False, accelerated=accelerated)[steps]
    state = EnsembleState(
        Instances.stack(keys[None], labels[None], values[None]), head=v[:, None], train="attention",
        attention_lr=1.0 if accelerated else 0.1, update="accelerated" if accelerated else "normalized",
    )  # fmt: skip
    state.run(steps)
    for weight in (p, state.attention[:, 0]):
        gap = direction_gap(weight, svm.direction)
        assert gap is not None
        assert gap < (1e-6 if accelerated else 1e-4)


def test_copies_are_found() -> None:
    keys = f64([[[1, 2], [0, 0], [1, 2], [-0.0, 0]], [[1, 0], [2, 0], [3, 0], [4, 0]]])
    values = f64([[[1], [5], [2], [5]], [[1], [1], [1], [1]]])
    found = find_copies(keys, values)
    assert found.first is not None
    # -0 is 0, but tokens 1 and 3 have one value: only keys with several count.
    assert found.first.tolist() == [[0, 1, 0, 3], [0, 1, 2, 3]]
    assert found.equal
    assert not found.near
    assert find_copies(keys, keys).first is None
    mask = torch.tensor([[True, True, False, True], [True] * 4])
    assert find_copies(keys, values, mask).first is None


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
@pytest.mark.parametrize("distance", [1e-16, 1e-6, 1e-2, 0.1])
def test_near_keys_are_found_at_any_scale(distance: float, scale: float) -> None:
    keys = f64([[[1.0, 0.5], [1.0 + 3 * distance, 0.5], [-1.0, 0.5], [0.0, 0.0]]]) * scale
    assert find_copies(keys, keys).near == (distance < 0.01)


def test_numbers_of_few_bits_are_told_apart() -> None:
    """Halves differ in the top bits of their floats alone: a hash must not lose these."""
    steps = torch.arange(-8, 9, dtype=torch.float64) / 2
    keys = torch.cartesian_prod(steps, steps, steps[:3])[None]
    values = torch.arange(keys.shape[1], dtype=torch.float64)[None, :, None]
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        found = find_copies(keys.to(dtype), values)
        assert not found.equal
        assert found.first is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_copies_are_those_of_all_pairs(dtype: torch.dtype, masked: bool) -> None:
    """Keys of few numbers, zeros of both signs among them, so that many are equal; each pair is compared as it is."""
    g = torch.Generator().manual_seed(1)
    keys = torch.randint(-1, 2, (200, 5, 3), generator=g).to(dtype) * torch.tensor([1.0, -1.0, 0.5], dtype=dtype)
    values = torch.randint(0, 2, (200, 5, 1), generator=g).to(dtype)
    mask = torch.rand(200, 5, generator=g) < 0.7 if masked else None
    pair = ~torch.eye(5, dtype=torch.bool)[None].expand(200, 5, 5)
    pair = pair if mask is None else pair & mask[:, :, None] & mask[:, None]
    same = (keys[:, :, None] == keys[:, None]).all(3)
    several = (pair & same & (values[:, :, None] != values[:, None]).any(3)).any(2)
    itself = torch.arange(5)
    expected = torch.where(several, ((pair & same) | ~pair & torch.eye(5, dtype=torch.bool)).int().argmax(2), itself)
    found = find_copies(keys, values, mask)
    assert found.equal
    assert found.first is not None
    assert torch.equal(found.first, expected)
    alone = keys[~(pair & same).any(2).any(1)]
    assert masked or not find_copies(alone, alone).equal


def test_what_is_known_goes_with_the_data_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = torch.randn(3, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    keys[1, 2] = keys[1, 0]
    data = Sequences(keys, torch.ones(3), values=torch.arange(12.0, dtype=torch.float64).view(3, 4, 1))
    known = data.copies()
    with monkeypatch.context() as patch:
        patch.setattr(sequences, "find_copies", None)  # nothing is looked up here
        assert data.copies() is known
        assert data.to("cpu") is data
        assert data.with_queries(torch.ones(3, 2)).copies() is known
        first = data[torch.tensor([1])].to(torch.float32).copies().first
        assert first is not None
        assert first.tolist() == [[0, 1, 0, 3]]
    data.mask = torch.tensor([[True, True, False, True]] * 3)
    assert data.copies().first is None
    data.mask = None
    assert data.copies().first is not None
    keys[1, 2] += 1.0
    assert data.copies().first is None


def test_what_is_known_of_values_that_were_written_to_is_found_again() -> None:
    g = torch.Generator().manual_seed(0)
    keys, values = torch.randn(3, 4, 5, generator=g), torch.randn(3, 4, 2, generator=g)
    keys[:, 1], values[:, 1] = keys[:, 0], values[:, 0]
    data = Sequences(keys, torch.ones(3), values)
    assert data.copies().first is None
    values[:, 1] += 1
    assert data.copies().first is not None
