"""What is measured by two and three processes, each of its own sequences: one process's numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_maxmargin.core import Sequences, TokenSelector
from lightning_maxmargin.core.ranks import Ranks
from lightning_maxmargin.probe import parts
from lightning_maxmargin.probe.geometry import Norms
from lightning_maxmargin.probe.selector import Probe, Snapshot
from tests.ddp.ranks import on_ranks

T, D = 6, 5
#: Processes and sequences: fewer than processes, as many, and shares that are not equal; two seconds each.
SIZES = [(world, n) for world in (2, 3) for n in (1, 2, 3, 5, 64, 65, 67)]
QUICK = ((2, 5),)
KINDS: dict[str, dict[str, Any]] = {
    "p": {"parametrization": "p"},
    "W": {"parametrization": "W", "query": "own"},
    "padded": {"parametrization": "p", "ragged": True},
    "classes": {"parametrization": "W", "query": "separate", "num_classes": 3},
    "attention alone": {"parametrization": "p", "train": "attention"},
    "head alone": {"parametrization": "p", "train": "head"},
    "nonlinear head": {"parametrization": "p", "head": "mlp"},
    "mapped": {"parametrization": "p", "mapped": True},
}


class Case:
    """Models of one kind and the sequences that they see."""

    def __init__(self, kind: str, n: int, folder: Path) -> None:
        settings = dict(KINDS[kind])
        self.train, ragged, mapped = settings.pop("train", "both"), settings.pop("ragged", 0), settings.pop("mapped", 0)
        g = torch.Generator().manual_seed(n)
        classes = settings.get("num_classes", 2)
        keys = torch.randn(n, T, D, generator=g, dtype=torch.float32 if mapped else torch.float64)
        true = torch.randn(D, classes, generator=g)
        planted = (keys.float() @ true[:, 0]).argmax(1)
        logits = keys.float()[torch.arange(n), planted] @ true
        labels = logits[:, 0].sign().double() if classes == 2 else logits.argmax(1)
        if mapped:
            file = folder / "keys.bin"
            file.write_bytes(keys.numpy().tobytes())
            keys = torch.from_file(str(file), size=keys.numel()).view(n, T, D)
        mask = None
        if ragged:
            mask = torch.rand(n, T, generator=g) < 0.7
            mask.scatter_(1, planted[:, None], True)
        queries = torch.randn(n, D, generator=g, dtype=torch.float64) if settings.get("query") == "separate" else None
        self.data = Sequences(keys, labels, queries=queries, mask=mask, planted=planted)
        self.models = []
        torch.manual_seed(n)
        for _ in range(2):
            model = TokenSelector(D, attention_init="normal", init_std=1.0, **settings).double()
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    weight.copy_(torch.randn(weight.shape, generator=g, dtype=torch.float64))
                    if name == "p":
                        # On the way to the planted tokens, where their SVM has an answer.
                        weight.add_(true[:, 0].double(), alpha=len(self.models) * 3.0)
            self.models.append(model)
        # A step of the norms alone, in which no token changes.
        self.models.append(self.models[-1])

    def measure(self, ranks: Ranks | None = None) -> list[Snapshot]:
        probe = Probe(self.data, self.train, ranks=ranks)
        return [probe.measure(model) for model in self.models]


def compare(found: list[Snapshot], whole: list[Snapshot]) -> None:
    for ours, theirs in zip(found, whole, strict=True):
        assert ours.selected.tolist() == theirs.selected.tolist()
        assert set(ours.values) == set(theirs.values)
        assert set(ours.solutions) == set(theirs.solutions)
        for key, value in theirs.values.items():
            if isinstance(value, float):
                # A quotient r by an SVM's margin: 1e-10 of that margin is 1e-10 r^2 of the quotient.
                near = 1e-10 * max(1.0, value**2) if key.startswith("relative_margin/") else 1e-10
                value = pytest.approx(value, rel=1e-10, abs=near)
            assert ours.values[key] == value, key


@pytest.mark.parametrize(
    ("world", "n"), [size if size in QUICK else pytest.param(*size, marks=pytest.mark.slow) for size in SIZES]
)
def test_one_processes_numbers(world: int, n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [Case(kind, n, tmp_path) for kind in KINDS]
    whole = [case.measure() for case in cases]
    # Sequences stay where they are, and of every solve only rows travel.
    monkeypatch.setattr(parts, "NUMBERS_IN_BLOCK", 2 * T * D)
    monkeypatch.setattr("lightning_maxmargin.svm.distributed.NUMBERS_AT_ONCE", 0)
    found = on_ranks(world, tmp_path, lambda rank: [case.measure(Ranks()) for case in cases])
    assert not isinstance(found[0], str), found
    for rank in range(world):
        for ours, theirs in zip(found[rank], whole, strict=True):
            compare(ours, theirs)
    seen = [snapshot.values for snapshots in whole for snapshot in snapshots]
    assert sum(values["status/attention"] == "certified" for values in seen) > len(seen) / 4
    assert n == 1 or any(values["svm/limit"] != "strict" for values in seen)


def test_small_problems_are_solved_in_one_piece(tmp_path: Path) -> None:
    case = Case("W", 5, tmp_path)
    whole = case.measure()
    found = on_ranks(2, tmp_path, lambda rank: case.measure(Ranks()))
    for ours, theirs in zip(found[0], whole, strict=True):
        assert torch.equal(ours.solutions["strict"].attention.dual, theirs.solutions["strict"].attention.dual)
    compare(found[0], whole)


def test_one_process_reads_what_is_large_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [Case(kind, 67, tmp_path) for kind in KINDS]
    whole = [case.measure() for case in cases]
    monkeypatch.setattr(parts, "NUMBERS_IN_MEMORY", 0)
    monkeypatch.setattr(parts, "NUMBERS_IN_BLOCK", 20 * T * D)
    for case, theirs in zip(cases, whole, strict=True):
        compare(case.measure(), theirs)


def test_an_error_of_one_reaches_all(tmp_path: Path) -> None:
    case = Case("p", 9, tmp_path)

    def work(rank: int) -> Any:
        if rank == 1:
            case.data.keys = case.data.keys[:, :, :4]
        return case.measure(Ranks())

    found = on_ranks(3, tmp_path, work)
    assert found[0] == found[1] == found[2]
    assert found[0].startswith("RuntimeError: rank 1: ")


def test_what_needs_all_sequences_is_refused(tmp_path: Path) -> None:
    case = Case("p", 5, tmp_path)
    found = on_ranks(2, tmp_path, lambda rank: Probe(case.data, norms=Norms("linf"), ranks=Ranks()))
    assert found[0] == found[1]
    assert found[0].startswith("InputError: norm 'linf' and numbers of your own need all sequences on one process")
