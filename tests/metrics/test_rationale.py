"""Agreement with marked units: against scikit-learn, against ERASER's definitions read literally, and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.metrics import (
    IouF1,
    RationaleAUPRC,
    RPrecision,
    TokenF1,
    agreement,
    chosen_units,
    iou_f1,
    r_precision,
    rationale_auprc,
    span_agreement,
    token_f1,
)
from lightning_maxmargin.metrics.rationale import ranked, runs, units_of_share

Document = list[tuple[float, bool]]
# Few distinct scores, so that ties are common.
documents = st.lists(
    st.lists(st.tuples(st.integers(-3, 3).map(lambda x: x / 4), st.booleans()), max_size=9), min_size=1, max_size=4
)


def padded(docs: list[Document]) -> tuple[Tensor, Tensor, Tensor]:
    """A batch whose padding is NaN and marked, which nothing may look at."""
    n, T = len(docs), max(map(len, docs))
    scores, marked, mask = torch.full((n, T), torch.nan), torch.ones(n, T).bool(), torch.zeros(n, T).bool()
    for i, doc in enumerate(docs):
        for t, (score, mark) in enumerate(doc):
            scores[i, t], marked[i, t], mask[i, t] = score, mark, True
    return scores, marked, mask


def judged(doc: Document) -> bool:
    return len({mark for _, mark in doc}) == 2


def same(got: Tensor, want: list[float]) -> None:
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-12)


def eraser_iou(docs: list[tuple[list[tuple[int, int]], list[tuple[int, int]]]]) -> float:
    """Macro F1 of partial matches at .5 with sets of positions, as ERASER words it, of (predicted, true) spans."""
    precisions, recalls = [], []
    for predicted, true in docs:
        sets = [(set(range(*p)), [set(range(*t)) for t in true]) for p in predicted]
        right = sum(max((len(p & t) / len(p | t) for t in ts), default=0.0) >= 0.5 for p, ts in sets)
        recalls.append(right / len(true))
        if predicted:
            precisions.append(right / len(predicted))
    p, r = np.mean(precisions or [0.0]), np.mean(recalls)
    return 2 * p * r / (p + r) if p + r else 0.0


@settings(deadline=None, max_examples=200)
@given(docs=documents)
def test_auprc_is_scikit_learns(docs: list[Document]) -> None:
    want = [average_precision_score([m for _, m in d], [s for s, _ in d]) if judged(d) else math.nan for d in docs]
    same(rationale_auprc(*padded(docs)), want)


@settings(deadline=None, max_examples=100)
@given(docs=documents, threshold=st.integers(-3, 3).map(lambda x: x / 4))
def test_token_scores_are_scikit_learns(docs: list[Document], threshold: float) -> None:
    scores, marked, mask = padded(docs)
    chosen = chosen_units(scores, marked, mask, threshold=threshold)
    for name, got in agreement(chosen, marked, mask)._asdict().items():
        score = {"precision": precision_score, "recall": recall_score, "f1": f1_score}[name]
        want = [
            score([m for _, m in d], [s >= threshold for s, _ in d], zero_division=0.0) if judged(d) else math.nan
            for d in docs
        ]
        same(got, want)
    torch.testing.assert_close(token_f1(scores, marked, mask, threshold=threshold), got, equal_nan=True)


@settings(deadline=None, max_examples=100)
@given(docs=documents)
def test_at_as_many_as_are_marked_all_four_are_r_precision(docs: list[Document]) -> None:
    want = []
    for doc in docs:
        best = sorted(range(len(doc)), key=lambda t: (-doc[t][0], t))[: sum(m for _, m in doc)]
        want.append(np.mean([doc[t][1] for t in best]) if judged(doc) else math.nan)
    scores, marked, mask = padded(docs)
    same(r_precision(scores, marked, mask), want)
    for part in (*agreement(chosen_units(scores, marked, mask), marked, mask), token_f1(scores, marked, mask)):
        same(part, want)


@settings(deadline=None, max_examples=200)
@given(docs=documents, threshold=st.integers(-3, 3).map(lambda x: x / 4))
def test_iou_f1_is_erasers(docs: list[Document], threshold: float) -> None:
    scores, marked, mask = padded(docs)
    chosen = chosen_units(scores, marked, mask, threshold=threshold)
    spans = [
        (runs(torch.tensor([s >= threshold for s, _ in d])), runs(torch.tensor([m for _, m in d])))
        for d in docs
        if judged(d)
    ]
    if spans:
        assert iou_f1(chosen, marked, mask) == pytest.approx(eraser_iou(spans), abs=1e-12)
        metric = IouF1(threshold=threshold)
        metric.update(scores, marked, mask)
        assert metric.compute().item() == pytest.approx(eraser_iou(spans), abs=1e-12)
    else:
        assert math.isnan(iou_f1(chosen, marked, mask))


@pytest.mark.parametrize("measure", [rationale_auprc, r_precision, token_f1])
@settings(deadline=None, max_examples=60)
@given(docs=documents, data=st.data())
def test_bounds_monotone_maps_and_permutations(
    measure: Callable[..., Tensor], docs: list[Document], data: st.DataObject
) -> None:
    scores, marked, mask = padded(docs)
    value = measure(scores, marked, mask)
    known = value[~value.isnan()]
    assert ((known >= 0) & (known <= 1)).all()
    torch.testing.assert_close(measure((3 * scores).exp(), marked, mask), value, equal_nan=True)
    order = data.draw(st.permutations(range(len(docs))))
    torch.testing.assert_close(measure(*padded([docs[i] for i in order])), value[order], equal_nan=True)
    # Units in another order, all with their own score: ties go by position.
    distinct = [[(s + 0.01 * t, m) for t, (s, m) in enumerate(doc)] for doc in docs]
    mixed = [data.draw(st.permutations(doc)) for doc in distinct]
    torch.testing.assert_close(measure(*padded(mixed)), measure(*padded(distinct)), equal_nan=True)
    perfect = measure(marked.double(), marked, mask)
    assert (perfect[~perfect.isnan()] == 1).all()


def test_by_hand() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.8, 0.1, 0.0, 0.7]])
    marked = torch.tensor([[True, False, True, False, True, False]])
    # Thresholds .9: 1/1; .8: 2/3; 0: 3/6.
    same(rationale_auprc(scores, marked), [(1 + 2 / 3 + 1 / 2) / 3])
    same(r_precision(scores, marked), [2 / 3])
    assert chosen_units(scores, marked, share=0.3).tolist() == [[True, True, False, False, False, False]]
    same(token_f1(scores, marked, share=0.3), [2 / 5])
    # Chosen 0-3 and 5-6, marked 0-1, 2-3, 4-5: 1/3 at most.
    chosen = chosen_units(scores, marked, threshold=0.5)
    assert runs(chosen[0]) == [(0, 3), (5, 6)]
    assert iou_f1(chosen, marked) == 0
    wide = torch.tensor([[True, True, False, False, False, True]])
    spans = span_agreement(wide, torch.tensor([[True, False, False, True, False, True]]))
    same(torch.cat(spans), [1.0, 2 / 3, 0.8])


def test_an_order_at_random_has_the_share_that_is_marked() -> None:
    g = torch.Generator().manual_seed(0)
    scores = torch.rand(4000, 20, generator=g)
    marked = torch.arange(20).expand(4000, 20) < 6
    assert r_precision(scores, marked).mean().item() == pytest.approx(0.3, abs=0.01)
    # One score for all: precision at the only threshold.
    same(rationale_auprc(torch.zeros(1, 20), marked[:1]), [0.3])


def test_share_of_units() -> None:
    lengths = torch.arange(1, 1001)
    for percent in (1, 5, 10, 20, 50, 100):
        want = [max(1, -(-percent * T // 100)) for T in lengths.tolist()]
        assert units_of_share(percent / 100, lengths).tolist() == want
    assert units_of_share(0.5, torch.tensor([0])).tolist() == [0]


def test_the_lowest_score_is_before_padding() -> None:
    scores, mask = torch.tensor([[9.0, -torch.inf, 9.0, 0.0]]), torch.tensor([[False, True, False, True]])
    assert ranked(scores, mask).tolist() == [[3, 1, 0, 2]]


def test_wrong_input() -> None:
    scores, marked = torch.tensor([[0.0, 1.0], [torch.nan, 1.0]]), torch.tensor([[True, False]] * 2)
    with pytest.raises(InputError, match="document 1 is NaN"):
        rationale_auprc(scores, marked)
    with pytest.raises(InputError, match="give one of them"):
        token_f1(scores[:1], marked[:1], share=0.1, threshold=0.5)
    with pytest.raises(InputError, match="share of 10"):
        token_f1(scores[:1], marked[:1], share=10)
    with pytest.raises(InputError, match=r"below 0\.5"):
        iou_f1(marked, marked, iou=0.1)


METRICS: dict[str, tuple[Callable[[], RationaleAUPRC | RPrecision | TokenF1 | IouF1], Callable[..., float]]] = {
    "auprc": (RationaleAUPRC, lambda *batch: rationale_auprc(*batch).nanmean().item()),
    "r_precision": (RPrecision, lambda *batch: r_precision(*batch).nanmean().item()),
    "token_f1": (lambda: TokenF1(share=0.4), lambda *batch: token_f1(*batch, share=0.4).nanmean().item()),
    "iou_f1": (lambda: IouF1(share=0.4), lambda s, m, k: iou_f1(chosen_units(s, m, k, share=0.4), m, k)),
}


@pytest.mark.parametrize("name", METRICS)
def test_metrics_are_the_mean_over_documents_of_all_batches(name: str) -> None:
    g = torch.Generator().manual_seed(1)
    scores, marked = torch.rand(30, 12, generator=g), torch.rand(30, 12, generator=g) < 0.2
    mask = torch.arange(12) < torch.randint(1, 13, (30, 1), generator=g)
    make, whole = METRICS[name]
    metric = make()
    want = whole(scores, marked, mask)
    for cut in (slice(0, 7), slice(7, 7), slice(7, 8), slice(8, 30)):
        metric.update(scores[cut], marked[cut], mask[cut])
    assert 0 < want < 1
    assert metric.compute().item() == pytest.approx(want, rel=1e-12)
    truth = (marked & mask).sum(1)
    assert metric.left_out.item() == ((truth == 0) | (truth == mask.sum(1))).sum() > 0
    metric.reset()
    assert metric(scores, marked, mask).item() == pytest.approx(want, rel=1e-12)
    # Sums are what processes exchange.
    assert {getattr(f, "__name__", "") for f in metric._reductions.values()} == {"dim_zero_sum"}
