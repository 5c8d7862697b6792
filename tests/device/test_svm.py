"""Every solver on tensors of a device: the same directions, with the same certificates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_maxmargin import svm
from tests.device.compare import agree, covers, on_device
from tests.device.pretend import Gpu


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


KEYS, SELECTED, QUERIES = draw(5, 4, 6), torch.tensor([0, 1, 2, 3, 0]), draw(5, 3, seed=1)
LABELS, MASK = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]), torch.ones(5, 4, dtype=torch.bool)
MASK[4, 3] = False
FEW = draw(5, 4, 12, seed=2)


@pytest.mark.parametrize("norm", ["l2", 3.0, "linf", "spectral", "nuclear"])
@covers("svm.solve_att_svm", "svm.Solution", "svm.Status")
def test_attention_in_every_norm(gpu: Gpu, norm: Any) -> None:
    found = agree(svm.solve_att_svm, KEYS, SELECTED, queries=QUERIES, mask=MASK, norm=norm, rtol=1e-6)
    assert isinstance(found, svm.Solution)
    assert found.status is svm.Status.CERTIFIED


@pytest.mark.parametrize("at_once", [None, 0], ids=["in one piece", "row by row"])
@covers("svm.DistributedShard")
def test_a_shard_on_the_device(gpu: Gpu, at_once: int | None) -> None:
    def solve(keys: Tensor, selected: Tensor) -> Any:
        return svm.only(svm.solve_att_svm(svm.DistributedShard(keys, at_once=at_once), selected))

    agree(solve, FEW, SELECTED, rtol=1e-6)


@covers("svm.BatchSolution", "svm.only")
def test_batches(gpu: Gpu) -> None:
    def solve(keys: Tensor, selected: Tensor) -> Any:
        return svm.solve_att_svm(keys, selected)

    assert isinstance(agree(solve, draw(3, 5, 4, 6), SELECTED.expand(3, 5), rtol=1e-6), svm.BatchSolution)
    agree(lambda *given: svm.only(solve(*given)), KEYS, SELECTED, rtol=1e-6)


def test_a_warm_start_from_the_device(gpu: Gpu) -> None:
    before = svm.solve_att_svm(*on_device([KEYS, SELECTED]))
    after = svm.solve_att_svm(*on_device([KEYS + 1e-3 * draw(5, 4, 6, seed=3), SELECTED]), warm_start=before)
    assert after.status == "certified"


@covers("svm.solve_label_svm")
def test_labels(gpu: Gpu) -> None:
    agree(svm.solve_label_svm, FEW[:, 0], LABELS, rtol=1e-6)
    agree(svm.solve_label_svm, FEW[:, 0], torch.tensor([0, 1, 2, 0, 1]), num_classes=3, rtol=1e-6)


@pytest.mark.parametrize("limit", ["strict", "relaxed", "rate_coupled"])
@covers("svm.solve_joint_svm", "svm.JointSolution")
def test_joint(gpu: Gpu, limit: str) -> None:
    given = {"limit": limit, "norm_ratio": 2.0 if limit == "rate_coupled" else None, "mask": MASK}
    found = agree(svm.solve_joint_svm, FEW, FEW, LABELS, SELECTED, **given, rtol=1e-6)
    assert isinstance(found, svm.JointSolution)
    batch = [x.expand(2, *x.shape) for x in (FEW, FEW, LABELS, SELECTED)]
    ratio = torch.tensor([2.0, 3.0]) if limit == "rate_coupled" else None
    agree(svm.solve_joint_svm, *batch, limit=limit, norm_ratio=ratio, rtol=1e-6)


@covers("svm.solve_kept_svm", "svm.solve_finite_part", "svm.solve_rows", "svm.CustomSolution")
def test_kept_tokens_and_rows(gpu: Gpu) -> None:
    kept = torch.tensor([[True, True, False, False]]).repeat(5, 1)
    agree(svm.solve_kept_svm, FEW, kept, mask=MASK, rtol=1e-6)
    agree(svm.solve_finite_part, FEW, kept, draw(5, 4).abs(), rtol=1e-6)
    found = agree(
        svm.solve_rows, draw(3, 6), torch.tensor([0.0, 1.0, 1.0]), torch.tensor([True, False, False]), rtol=1e-6
    )
    assert isinstance(found, svm.CustomSolution)


@covers("svm.RowProblem", "svm.certify", "svm.certify_infeasible", "svm.norm_of", "svm.dual_norm_of",
        "svm.relative_margin_in")  # fmt: skip
def test_certificates_and_norms(gpu: Gpu) -> None:
    def judged(keys: Tensor, selected: Tensor) -> Any:
        solution = svm.only(svm.solve_att_svm(keys, selected))
        problem, direction = svm.RowProblem.attention(keys, selected), solution.direction.cpu().numpy()
        dual = np.zeros(keys.shape[:2])
        dual[0, 1] = 1.0
        return (
            svm.certify(problem, direction, solution.dual.cpu().numpy())[2], svm.certify_infeasible(problem, dual)[1],
            svm.relative_margin_in(solution.direction, problem, solution),
        )  # fmt: skip

    assert agree(judged, KEYS, SELECTED, rtol=1e-6)[0] == "certified"
    for norm in ("l2", "linf", "spectral", "nuclear", 3.0):
        agree(svm.norm_of, draw(3, 2), norm)
        agree(svm.dual_norm_of, draw(3, 2), norm)
