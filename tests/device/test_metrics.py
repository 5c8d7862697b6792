"""Every metric on a device: tensors as a LightningModule hands them over."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_maxmargin import metrics
from tests.device.compare import agree, close, covers, on_device
from tests.device.pretend import GPU, Gpu

G = torch.Generator().manual_seed(0)
SCORES, LOGITS = (
    torch.randn(4, 6, generator=G, dtype=torch.float64),
    torch.randn(4, 3, generator=G, dtype=torch.float64),
)
EVIDENCE = torch.randn(4, 6, 3, generator=G, dtype=torch.float64)
SELECTED, CLASSES = torch.tensor([0, 2, 1, 4]), torch.tensor([0, 2, 1, 2])
MASK = torch.arange(6) < torch.tensor([6, 5, 3, 6])[:, None]
MARKED = (torch.rand(4, 6, generator=G) < 0.4) & MASK
CHOSEN = (torch.rand(4, 6, generator=G) < 0.4) & MASK
KEEP = torch.rand(4, 2, 6, generator=G) < 0.7

FUNCTIONS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("agreement", (CHOSEN, MARKED, MASK), {}),
    ("attention_margin", (SCORES, SELECTED, 2.0, MASK), {}),
    ("chosen_units", (SCORES, MARKED, MASK), {"share": 0.4}),
    ("comprehensiveness", (SCORES, EVIDENCE, MASK), {}),
    ("direction_gap", (SCORES[0], SCORES[1]), {}),
    ("entropy", (SCORES.softmax(1),), {}),
    ("globally_optimal", (SCORES, SELECTED, MASK), {}),
    ("head_probabilities", (SCORES, EVIDENCE, KEEP), {}),
    ("iou_f1", (CHOSEN, MARKED, MASK), {}),
    ("label_margin", (LOGITS, CLASSES, 2.0), {}),
    ("label_rows", (LOGITS, CLASSES), {}),
    ("locally_optimal", (SCORES, SELECTED, torch.tensor([[0, 1], [3, 2]])), {}),
    ("r_precision", (SCORES, MARKED, MASK), {}),
    ("rationale_auprc", (SCORES, MARKED, MASK), {}),
    ("score_rows", (SCORES, SELECTED, MASK), {}),
    ("selected_mass", (SCORES.softmax(1), SELECTED), {}),
    ("span_agreement", (CHOSEN, MARKED, MASK), {}),
    ("sparsity", (SCORES.softmax(1),), {}),
    ("sufficiency", (SCORES, EVIDENCE, MASK), {}),
    ("token_f1", (SCORES, MARKED, MASK), {"share": 0.4}),
]
CLASSES_AND_UPDATES: list[tuple[str, dict[str, Any], tuple[Any, ...]]] = [
    ("Comprehensiveness", {}, (SCORES, EVIDENCE, MASK)),
    ("DirectionGap", {}, (SCORES[0], SCORES[1])),
    ("IouF1", {"share": 0.4}, (SCORES, MARKED, MASK)),
    ("MinMargin", {}, (SCORES[0],)),
    ("RPrecision", {}, (SCORES, MARKED, MASK)),
    ("RationaleAUPRC", {}, (SCORES, MARKED, MASK)),
    ("SelectionAccuracy", {}, (SELECTED, CLASSES)),
    ("Sufficiency", {}, (SCORES, EVIDENCE, MASK)),
    ("TokenF1", {"share": 0.4}, (SCORES, MARKED, MASK)),
]


@pytest.mark.parametrize(("name", "args", "options"), FUNCTIONS)
@covers(*(f"metrics.{name}" for name, _, _ in FUNCTIONS), "metrics.Agreement")
def test_every_function(gpu: Gpu, name: str, args: Any, options: Any) -> None:
    found = agree(getattr(metrics, name), *args, **options)
    assert isinstance(found, metrics.Agreement) == (name in ("agreement", "span_agreement"))


@pytest.mark.parametrize(("name", "options", "args"), CLASSES_AND_UPDATES)
@covers(*(f"metrics.{name}" for name, _, _ in CLASSES_AND_UPDATES))
def test_every_metric(gpu: Gpu, name: str, options: Any, args: Any) -> None:
    found: list[Tensor] = []
    for device in ("cpu", GPU):
        metric = getattr(metrics, name)(**options).to(device)
        for _ in range(2):
            metric.update(*(args if device == "cpu" else on_device(args)))
        found.append(metric.compute())
    close(found[1], found[0])


@covers("metrics.head_probability", "metrics.aopc", "metrics.aopc_bounds", "metrics.normalised_aopc",
        "metrics.Bounds", "metrics.Faithfulness")  # fmt: skip
def test_probabilities_of_parts(gpu: Gpu) -> None:
    def all_of(scores: Tensor, evidence: Tensor) -> tuple[Any, ...]:
        p, order = metrics.head_probability(scores, evidence), scores.argsort(descending=True)
        bins = (0.2, 0.5)
        return (
            p(torch.ones(2, 6, dtype=torch.bool, device=scores.device)), metrics.aopc(p, order, bins),
            metrics.aopc_bounds(p, 6, bins), metrics.normalised_aopc(p, order, bins),
        )  # fmt: skip

    _, values, bounds, _ = agree(all_of, SCORES[0], EVIDENCE[0])
    assert isinstance(values, metrics.Faithfulness)
    assert isinstance(bounds, metrics.Bounds)
