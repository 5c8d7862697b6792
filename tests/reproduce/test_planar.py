"""The planar experiments' functions on few steps, against gold values and against gradients taken another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.optim import FactoredGD
from lightning_maxmargin.reproduce.gradient_errors import by_autograd, in_decimals, in_log_domain
from lightning_maxmargin.reproduce.joint import joint
from lightning_maxmargin.reproduce.losses import losses
from lightning_maxmargin.reproduce.multi import multi
from lightning_maxmargin.reproduce.paths import cosine, record
from lightning_maxmargin.reproduce.problems import Problems
from lightning_maxmargin.reproduce.saturation import saturation
from lightning_maxmargin.reproduce.single import single
from lightning_maxmargin.reproduce.states import FactoredState, PlainState
from lightning_maxmargin.reproduce.visual import visual


def _quiet(_: float) -> None:
    pass


def test_joint_tight_has_its_gold_limits() -> None:
    found = joint(_quiet, "joint_tight", steps=200).numbers
    assert [found["p_mm/0"], found["p_mm/1"], found["v_mm/0"], found["v_mm/1"]] == pytest.approx([4 / 3, 1 / 3, 0, 1])
    assert [found[f"label_margin/{i}"] for i in range(3)] == pytest.approx([1, 1, 1])
    assert found["cos/strict/200"] == pytest.approx(0.99984, abs=5e-6)


def test_low_starts_end_at_the_local_limit() -> None:
    starts = [1.0, -0.5, -1.0, -1.5]
    found = single(_quiet, "single_local", starts, (-2, 12), steps=200).numbers
    assert [found[f"selected/{y:g}"] for y in starts] == [0, 0, 1, 1]
    assert found["gmm/1"] == pytest.approx(0.9901, abs=5e-5)
    assert found["cos/-1.5/200"] == pytest.approx(0.9990, abs=1e-4)
    assert found["cos/-1.5/200"] == pytest.approx(found["naive/cos/-1.5/200"], abs=1e-9)


def test_multi_repeats_the_published_softmax() -> None:
    found = multi(_quiet, [0.0], [0.0], steps=200).numbers
    assert [found[f"ngd/0/softmax/{i}"] for i in (10, 50, 100)] == pytest.approx([0.428, 0.993, 1.0], abs=5e-4)
    published = [0.236, 0.818, 0.934, 0.972]
    assert [found[f"gd/0/softmax/{i}"] for i in (10, 50, 100, 200)] == pytest.approx(published, abs=5e-4)


def test_a_plain_exact_step_is_the_gradient_itself() -> None:
    data = Problems.of("multi")
    exact = data.exact(torch.zeros(1, 2).double())
    plain = PlainState(exact.data, exact.attention, exact.head, train="attention", attention_lr=1.0)
    naive = data.naive(torch.zeros(1, 2).double(), attention_lr=1.0, plain=True)
    assert torch.allclose(record(plain, 20)[0], record(naive, 20)[0], rtol=0, atol=1e-12)


def test_the_loss_moves_the_path_by_its_offset() -> None:
    found = losses(_quiet, [2.0, 10.0], steps=400, naive_steps=10).numbers
    assert [found["offset/correlation/2"], found["offset/correlation/10"]] == pytest.approx([0.347, 1.151], abs=5e-4)
    assert [found["offset/logistic/2"], found["offset/logistic/10"]] == pytest.approx([-0.060, -3.192], abs=5e-4)
    assert found["limit/exponential/10"] == pytest.approx(0.5 * (math.log(10) - 9))


def test_visual_1_has_its_gold_limits() -> None:
    found = visual(_quiet, "visual1", [0, 2], (-30, 40), (-100, 100), steps=100, seeds=2).numbers
    assert found["cos/w/100"] == pytest.approx(0.625, abs=5e-4)
    assert [found["frobenius/norm"], found["nuclear/norm"]] == pytest.approx([8.6857, 9.7548], abs=5e-5)
    assert [found["nuclear/rank"], found["frobenius/rank"]] == [1, 2]


def test_factors_move_as_the_optimizer_moves_them() -> None:
    data = Problems.of("visual1")
    K = torch.tensor([[0.1, -0.05], [0.02, 0.2]]).double()
    assert data.queries is not None
    state = FactoredState(data, K[None], lr=0.1)
    state.run(50)
    k, q = torch.nn.Parameter(K.clone()), torch.nn.Parameter(torch.zeros(2, 2).double())
    optimizer = FactoredGD([k, q], lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        s = torch.einsum("ntd,de,ne->nt", data.keys[0], k @ q.T, data.queries[0]).softmax(-1)
        f = torch.einsum("nt,ntd,d->n", s, data.values[0], data.heads[0])
        torch.nn.functional.softplus(-f).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert torch.allclose(state.attention[..., 0], (k @ q.T).detach(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [3.0, 300.0, 6e6])
def test_exact_gradients_agree_with_fifty_digits(size: float) -> None:
    batch = Problems.of("joint_relaxed")
    p, v = torch.tensor([[0.99, 0.02]]).double() * size, torch.tensor([[0.01, 0.97]]).double() * size
    truth = in_decimals(batch, p[0], v[0])
    assert 1 - cosine(in_log_domain(batch, p, v)[0], truth) <= 1e-14
    if size == 3.0:
        assert 1 - cosine(by_autograd(batch, p, v, torch.float64)[0], truth) <= 1e-14


@pytest.mark.slow
def test_each_dtype_loses_the_gradient_where_softmax_rounds_to_one() -> None:
    outcome = saturation(_quiet, seeds=4, steps=600, points=120, far_steps=600)
    found = outcome.numbers
    for dtype, bits in (("bfloat16", 8), ("float32", 24), ("float64", 53)):
        assert bits * np.log(2) - 0.7 <= found[f"lost/{dtype}"] <= (bits + 1) * np.log(2) + 0.7
    assert found["gradient/exact"] <= 1e-12
    assert len(outcome.panels) == 6
    assert found["random/settled"] + found["random/unsettled"] == 4
    assert found["random/exact"] > 0.97
    with pytest.raises(InputError, match="converged"):
        saturation(_quiet, seeds=2, steps=20, points=2, far_steps=60)
