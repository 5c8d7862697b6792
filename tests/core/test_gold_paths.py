"""Training with exact gradients ends where the theorems say, and passes the known points on the way."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_maxmargin.core import LOSSES, Sequences, TokenSelector
from lightning_maxmargin.data import PaperData
from lightning_maxmargin.metrics import direction_gap
from lightning_maxmargin.optim import NormalizedGD
from tests.core.exact_reference import cosine, f64, train_exact

STRICT, RELAXED = (1.25, 0.25), (1.0, 0.0)
GMM, LMM = (-0.1, 1.0), (1.0, 0.0)  # the first is (-.0990, .9901) at unit margin
V_MM = (0.0, 1.0)


def paper(example: str, score: float = 2.0) -> Sequences:
    data = PaperData(example, score).sequences("train")  # type: ignore[arg-type]
    assert data is not None
    return data


def test_joint_tight() -> None:
    seen = train_exact(paper("joint_tight"), (0, -1), (-1, 0), (200, 1000))
    assert [cosine(p, (4 / 3, 1 / 3)) for p, _ in seen.values()] == pytest.approx([0.99984, 0.99999], abs=5e-6)
    assert [cosine(v, V_MM) for _, v in seen.values()] == pytest.approx([0.99994, 1.00000], abs=5e-6)


def test_joint_relaxed() -> None:
    seen = train_exact(paper("joint_relaxed"), (0, -1), (-1, 0), (200, 1000))
    assert [cosine(p, RELAXED) for p, _ in seen.values()] == pytest.approx([0.99986, 1.00000], abs=5e-6)
    assert [cosine(p, STRICT) for p, _ in seen.values()] == pytest.approx([0.9837, 0.9812], abs=5e-5)
    assert cosine(seen[1000][1], V_MM) == pytest.approx(1, abs=1e-12)


@pytest.mark.slow
def test_joint_relaxed_gap_falls_as_one_over_norm_squared() -> None:
    seen = train_exact(paper("joint_relaxed"), (0, -1), (-1, 0), (5_000, 50_000))
    gaps = [direction_gap(p, f64(RELAXED)) for p, _ in seen.values()]
    assert gaps[1] == pytest.approx(1.8e-9, abs=5e-11)
    assert seen[50_000][0].norm() == pytest.approx(5_000, rel=1e-3)
    assert gaps[0] / gaps[1] == pytest.approx(100, rel=0.02)


@pytest.mark.parametrize(("dtype", "norm"), [(torch.float32, 22), (torch.float64, 47)])
def test_naive_autograd_ends_at_the_wrong_svm(dtype: torch.dtype, norm: float) -> None:
    """Rounding noise drives it from the relaxed limit, which it has passed close by, to the strict one."""
    data = paper("joint_relaxed").to(dtype)
    model = TokenSelector(2, parametrization="p", attention_init=[0.0, -1.0], head_init=[-1.0, 0.0]).to(dtype)
    optimizer = NormalizedGD(model.parameters())
    for step in range(1000):
        optimizer.zero_grad()
        LOSSES["logistic"](model(data, "naive").logits, data.labels).mean().backward()
        optimizer.step()
        if step == 199:
            assert cosine(model.direction.detach(), RELAXED) > 0.999
    p = model.direction.detach()
    assert cosine(p, STRICT) > 0.9999
    assert cosine(p, RELAXED) < 0.981
    # It does not move any more: the exact run of the same 1,000 steps is at norm 98.
    assert float(p.norm()) < norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_centred_autograd_goes_to_the_right_one(dtype: torch.dtype) -> None:
    data = paper("joint_relaxed").to(dtype)
    model = TokenSelector(2, parametrization="p", attention_init=[0.0, -1.0], head_init=[-1.0, 0.0]).to(dtype)
    optimizer = NormalizedGD(model.parameters())
    for _ in range(500):
        optimizer.zero_grad()
        LOSSES["logistic"](model(data, "centred").logits, data.labels).mean().backward()
        optimizer.step()
    # 48 is past 17 and 37, where naive gradients are noise; the cosine is that of exact gradients, .9999804.
    assert float(model.direction.detach().norm()) == pytest.approx(48.113, abs=1e-3)
    assert cosine(model.direction.detach(), RELAXED) == pytest.approx(0.9999804, abs=2e-7)


def test_multi() -> None:
    seen = train_exact(paper("multi"), (1, 0), (0, 0, 1), (200, 1000, 3000), joint=False)
    cosines = [cosine(p, (0.844626, 0.171122)) for p, _ in seen.values()]
    assert cosines == pytest.approx([0.99968, 0.99978, 0.99998], abs=5e-6)


@pytest.mark.parametrize("start", [1, 0.5, 0, -0.5, -1, -1.5])
def test_multi_from_every_start(start: float) -> None:
    p, _ = train_exact(paper("multi"), (start, 0), (0, 0, 1), (300,), joint=False, accelerated=True)[300]
    assert cosine(p, (0.844626, 0.171122)) > 1 - 1e-6


@pytest.mark.parametrize(("start", "at_200"), [(-1, 0.9996), (-1.5, 0.9990)])
def test_single_local_goes_to_the_local_solution(start: float, at_200: float) -> None:
    seen = train_exact(paper("single_local"), (0, start), (0, 0, 1), (200, 1000), joint=False)
    assert cosine(seen[200][0], LMM) == pytest.approx(at_200, abs=5.1e-5)
    assert cosine(seen[1000][0], LMM) > 0.9999


@pytest.mark.parametrize("start", [1, 0.5, 0, -0.5])
def test_single_local_goes_to_the_global_solution(start: float) -> None:
    p, _ = train_exact(paper("single_local"), (0, start), (0, 0, 1), (500,), joint=False)[500]
    assert cosine(p, GMM) > 0.9999


@pytest.mark.parametrize("start", [1, 0.5, 0, -0.5, -1, -1.5])
def test_single_global_goes_to_the_global_solution(start: float) -> None:
    p, _ = train_exact(paper("single_global"), (0, start), (0, 0, 1), (300,), joint=False, accelerated=True)[300]
    # The row of the second token is 10% above the margin: while it was felt, it moved p by some 10 of 22,800.
    assert cosine(p, GMM) > 1 - 2e-7


OFFSETS = {
    "correlation": {2: 0.347, 5: 0.805, 10: 1.151, 100: 2.303},
    "logistic": {2: -0.060, 5: -1.042, 10: -3.192, 100: -47.041},
}


@pytest.mark.parametrize("score", [2, 5, 10, 100])
@pytest.mark.parametrize("loss", ["correlation", "logistic", "exponential"])
def test_loss_offsets(loss: str, score: int) -> None:
    data = paper("losses", score)
    p, _ = train_exact(data, (0, 0), (0, 0, 1), (300,), joint=False, loss=loss, accelerated=True)[300]
    # |l'(C) / l'(1)| by hand.
    slope = {"correlation": 0.0, "exponential": 1 - score, "logistic": math.log((1 + math.e) / (1 + math.exp(score)))}
    offset = 0.5 * (math.log(score) + slope[loss])
    # Rounding of the scores: norm 22,700 times eps.
    assert float(p[1]) == pytest.approx(offset, abs=1e-10)
    assert float(p[0]) > 2e4
    if loss in OFFSETS:
        assert float(p[1]) == pytest.approx(OFFSETS[loss][score], abs=5e-4)
