"""Wrong input: one line that names the argument and what to do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm import solve_att_svm, solve_joint_svm, solve_label_svm

K = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
A = torch.zeros(3, dtype=torch.long)
Y = torch.tensor([1, -1, 1])
NAN = K.clone()
NAN[1, 2, 3] = torch.nan
HIDDEN = torch.ones(3, 4, dtype=torch.bool)
HIDDEN[1] = False
PADDED = torch.ones(3, 4, dtype=torch.bool)
PADDED[2, 0] = False
# Sixty rows of forty-five numbers: too many for rational arithmetic.
WIDE = torch.rand(60, 45, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
WIDE[0], WIDE[1] = 1e250 * WIDE[0], 1e-250 * WIDE[1]

CASES: dict[str, tuple[Callable[[], object], str]] = {
    "flat keys": (lambda: solve_att_svm(K[0], A), r"keys have shape \[4, 5\].*pass"),
    "empty keys": (lambda: solve_att_svm(K[:0], A[:0]), r"keys have shape \[0, 4, 5\]"),
    "nan": (lambda: solve_att_svm(NAN, A), r"keys hold nan at \[1, 2, 3\]"),
    "inf": (lambda: solve_att_svm(K.double() * 1e308 * 1e308, A), "keys hold .*inf at"),
    "huge": (
        lambda: solve_att_svm(torch.tensor([[[1.5e308], [-1.5e308]]], dtype=torch.float64), A[:1]),
        "too large to subtract: rescale",
    ),
    "wide": (lambda: solve_label_svm(WIDE, torch.ones(60)), "differ in size by more than float64 can square: rescale"),
    "complex": (lambda: solve_att_svm(K.to(torch.complex64), A), "keys are complex"),
    "words": (lambda: solve_att_svm("keys", A), "keys are no array of numbers"),  # type: ignore[arg-type]
    "selected shape": (lambda: solve_att_svm(K, A[:2]), r"selected has shape \[2\] for 3 sequences"),
    "selected range": (lambda: solve_att_svm(K, A + 4), "selected is 4 for sequence 0: .* from 0 to 3"),
    "selected negative": (lambda: solve_att_svm(K, A - 1), "selected is -1 for sequence 0"),
    "selected fraction": (lambda: solve_att_svm(K, A + 0.5), "selected is 0.5 for sequence 0"),
    "selected padded": (lambda: solve_att_svm(K, A, mask=PADDED), "selected token 0 of sequence 2 is padding"),
    "mask hides": (lambda: solve_att_svm(K, A, mask=HIDDEN), "mask hides every token of sequence 1"),
    "mask shape": (lambda: solve_att_svm(K, A, mask=HIDDEN[:2]), r"mask has shape \[2, 4\]"),
    "mask numbers": (lambda: solve_att_svm(K, A, mask=PADDED * 2), "mask holds numbers other than 0 and 1"),
    "queries shape": (lambda: solve_att_svm(K, A, queries=K[:2, 0]), r"queries have shape \[2, 5\] for 3"),
    "queries nan": (lambda: solve_att_svm(K, A, queries=NAN[:, 2]), r"queries hold nan at \[1, 3\]"),
    "rhs shape": (lambda: solve_att_svm(K, A, rhs=torch.ones(3)), r"rhs has shape \[3\]"),
    "rhs negative": (lambda: solve_att_svm(K, A, rhs=-torch.ones(3, 4)), r"rhs is -1 at \[0, 0\]"),
    "rhs nan": (lambda: solve_att_svm(K, A, rhs=NAN[:, :, 3]), r"rhs hold nan at \[1, 2\]"),
    "norm": (lambda: solve_att_svm(K, A, norm="l3"), "norm 'l3' .* 'l2'"),
    "batch": (lambda: solve_att_svm(K[None].repeat(2, 1, 1, 1), A[None]), "selected have 1 instances and keys 2"),
    "no instance": (lambda: solve_att_svm(K[None][:0], A[None][:0]), "keys hold no instance"),
    "values shape": (lambda: solve_label_svm(K, Y), r"values have shape \[3, 4, 5\]"),
    "values nan": (lambda: solve_label_svm(NAN[:, 2], Y), r"values hold nan at \[1, 3\]"),
    "labels shape": (lambda: solve_label_svm(K[:, 0], Y[:2]), r"labels have shape \[2\] for 3 samples"),
    "labels mixed": (lambda: solve_label_svm(K[:, 0], torch.tensor([0, -1, 1])), "labels hold -1 at 1"),
    "labels fraction": (lambda: solve_label_svm(K[:, 0], Y * 0.5), "labels hold 0.5 at 0"),
    "labels nan": (lambda: solve_label_svm(K[:, 0], Y * torch.nan), "labels hold nan at 0"),
    "class range": (lambda: solve_label_svm(K[:, 0], A + 3, num_classes=3), "class 3 at 0 of 3 classes"),
    "limit": (lambda: solve_joint_svm(K, K, Y, A, limit="loose"), "limit 'loose' is unknown: use one of strict"),
    "norm ratio": (lambda: solve_joint_svm(K, K, Y, A, limit="rate_coupled"), "norm_ratio is None"),
    "norm ratio sign": (lambda: solve_joint_svm(K, K, Y, A, limit="rate_coupled", norm_ratio=-1.0), "norm_ratio is -1"),
    "joint values": (lambda: solve_joint_svm(K, K[:2], Y, A), r"values have shape \[2, 4, 5\]"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_clear_line(case: str) -> None:
    call, message = CASES[case]
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_padding_may_hold_anything() -> None:
    keys = NAN.clone()
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1, 2] = False
    assert solve_att_svm(keys, A, mask=mask).status in ("certified", "infeasible")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_float_in_float64_out(dtype: torch.dtype) -> None:
    solution = solve_att_svm(torch.eye(3)[None].to(dtype), torch.tensor([0]))
    assert solution.direction.dtype == solution.dual.dtype == torch.float64
    assert not solution.direction.requires_grad
