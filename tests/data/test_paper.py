"""The worked examples, digit by digit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_maxmargin.core import LOSSES, Sequences, TokenSelector
from lightning_maxmargin.data import PaperData
from lightning_maxmargin.errors import InputError

NAMES = ["single_global", "single_local", "multi", "joint_tight", "joint_relaxed", "losses", "visual1", "visual2"]


def train(name: str, score: float = 2.0) -> Sequences:
    data = PaperData(name, score).sequences("train")  # type: ignore[arg-type]
    assert data is not None
    return data


def head(name: str) -> Tensor:
    v = PaperData(name).head  # type: ignore[arg-type]
    assert v is not None
    return v


@pytest.mark.parametrize("name", NAMES)
def test_every_example_is_whole_and_in_float64(name: str) -> None:
    data = PaperData(name)  # type: ignore[arg-type]
    sequences = data.sequences("train")
    assert sequences is not None
    assert sequences.keys.dtype == sequences.labels.dtype == sequences.values.dtype == torch.float64
    assert sequences.mask is None
    assert (data.dim, data.value_dim) == (sequences.keys.shape[2], sequences.values.shape[2])
    assert data.sequences("val") is None
    assert data.sequences("test") is None
    assert (data.head is None) == name.startswith("joint")
    assert [len(batch) for batch in data.train_dataloader()] == [len(sequences)]
    assert data.val_dataloader() == []


def test_multi_is_what_its_generator_drew() -> None:
    """Seed 0: .2 randn(3, 7, 3), shifted by (1,0,0), three times (-1,1,0), three times (-.5,-.5,0)."""
    x = 0.2 * torch.randn(3, 7, 3, generator=torch.Generator().manual_seed(0))
    x[:, 0] += torch.tensor([1.0, 0, 0])
    x[:, 1:4] += torch.tensor([-1.0, 1, 0])
    x[:, 4:] += torch.tensor([-0.5, -0.5, 0])
    data = train("multi")
    torch.testing.assert_close(data.keys, x[..., :2].double(), rtol=0, atol=6e-7)
    assert torch.equal(data.values[..., :2], data.keys)
    assert data.values[..., 2].tolist() == [[1] + [0.5] * 6] * 3
    assert data.labels.tolist() == [1, 1, 1]
    assert head("multi").tolist() == [0, 0, 1]


@pytest.mark.parametrize(("name", "score"), [("single_global", 0.9), ("single_local", 0.0)])
def test_single(name: str, score: float) -> None:
    data = train(name)
    assert data.keys.tolist() == [[[-0.1, 1], [1, 0], [0, 0]]]
    assert data.values.tolist() == [[[-0.1, 1, 1], [1, 0, 0.9], [0, 0, score]]]
    assert data.labels.tolist() == [1]
    assert head(name).tolist() == [0, 0, 1]


@pytest.mark.parametrize(("name", "third"), [("joint_tight", [0.5, 1]), ("joint_relaxed", [0.5, 1.5])])
def test_joint(name: str, third: list[float]) -> None:
    data = train(name)
    assert data.keys.tolist() == [[[0, 0], [1, 1]], [[0, 0], [1, -1]], [[0, 0], third]]
    assert data.values is data.keys
    assert data.labels.tolist() == [1, -1, 1]


@pytest.mark.parametrize("score", [2.0, 100.0])
def test_losses(score: float) -> None:
    data = train("losses", score)
    assert data.keys.tolist() == [[[0, 0], [1, 1]], [[0, 0], [1, -1]]]
    assert data.values[..., 2].tolist() == [[0, score], [0, 1]]
    assert data.labels.tolist() == [1, 1]


VISUAL = {
    "visual1": (
        {(0, 0): (-0.981497, 0.186395), (0, 2): (-1.456831, 0.114505), (1, 1): (0.732313, -0.017475)},
        [[0.845011, 0.534748], [-0.636264, -0.771471]],
        [0.927320, 0.374270],
        [0, 2],
    ),
    "visual2": (
        {(0, 0): (1, 0.5), (0, 3): (-0.619805, -0.016822), (1, 0): (1, -0.5), (1, 4): (-0.613163, -0.054622)},
        [[-0.539129, -0.842223], [0.952552, 0.304376]],
        [0.977124, 0.212671],
        [0, 0],
    ),
}


@pytest.mark.parametrize("name", VISUAL)
def test_visual(name: str) -> None:
    tokens, queries, v, optimal = VISUAL[name]
    data = train(name)
    assert data.queries is not None
    for (i, t), token in tokens.items():
        assert data.keys[i, t].tolist() == list(token)
    assert data.queries.tolist() == queries
    assert head(name).tolist() == v
    assert data.labels.tolist() == [1, 1]
    assert data.keys.shape == (2, 3 if name == "visual1" else 5, 2)
    # The literature's: unit queries and head to the digits printed, and these optimal tokens.
    torch.testing.assert_close(data.queries.norm(dim=1), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-6)
    assert head(name).norm().item() == pytest.approx(1, abs=1e-6)
    assert (data.values @ head(name)).argmax(1).tolist() == optimal


def test_visual1_has_the_published_solution() -> None:
    """Each row of the two support pairs is tight at the printed W_mm, whose norm is 8.6857."""
    W = torch.tensor([[2.85363, -2.70286], [5.37136, 5.58049]], dtype=torch.float64)
    data = train("visual1")
    assert data.queries is not None
    scores = torch.einsum("ntd,de,ne->nt", data.keys, W, data.queries)
    rows = torch.stack([scores[0, 0] - scores[0, 1:], scores[1, 2] - scores[1, :2]])
    assert rows.min(1).values.tolist() == pytest.approx([1, 1], abs=2e-5)
    assert W.norm().item() == pytest.approx(8.6857, abs=5e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_runs_on_every_example(name: str) -> None:
    data = PaperData(name)  # type: ignore[arg-type]
    query = "separate" if name.startswith("visual") else "shared"
    model = TokenSelector(data.dim, data.value_dim, query=query, query_dim=data.query_dim).double()  # type: ignore[arg-type]
    sequences = train(name)
    loss = LOSSES["logistic"](model(sequences).logits, sequences.labels)
    assert loss.tolist() == pytest.approx([0.6931471805599453] * len(sequences))


def test_unknown_example() -> None:
    with pytest.raises(InputError, match=r"'visual3' is none of .*visual2, losses"):
        PaperData("visual3")  # type: ignore[arg-type]
