"""One tester for every metric class: by batches, by two processes, after reset, on disk."""

from __future__ import annotations

import copy
import math
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch import distributed as dist
from torchmetrics import Metric

from lightning_maxmargin.metrics import DirectionGap, MinMargin, SelectionAccuracy, direction_gap


class Case(NamedTuple):
    """A metric, what it is fed batch by batch, and what all batches together must give."""

    make: Callable[[], Metric]
    batches: list[tuple[Tensor, ...]]
    truth: float


def cases() -> dict[str, Case]:
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(23, generator=g, dtype=torch.float64)
    chosen, planted = torch.randint(3, (2, 23), generator=g)
    # Unequal parts, one of them empty.
    cuts = [slice(0, 7), slice(7, 7), slice(7, 8), slice(8, 19), slice(19, 23)]
    pairs = [tuple(torch.randn(2, 4, generator=g, dtype=torch.float64)) for _ in range(5)]
    gaps = [direction_gap(*pair) or math.nan for pair in pairs]
    zero = (torch.zeros(4), torch.ones(4))  # no direction: not counted
    return {
        "MinMargin": Case(MinMargin, [(rows[c],) for c in cuts], float(rows.min())),
        "SelectionAccuracy": Case(
            SelectionAccuracy, [(chosen[c], planted[c]) for c in cuts], float((chosen == planted).sum()) / 23
        ),
        "DirectionGap": Case(DirectionGap, [*pairs[:2], zero, *pairs[2:]], sum(gaps) / 5),
    }


CASES = cases()
every = pytest.mark.parametrize("name", CASES)


def fed(name: str, batches: list[tuple[Tensor, ...]]) -> Metric:
    metric = CASES[name].make()
    for batch in batches:
        metric.update(*batch)
    return metric


@every
def test_batches_give_the_whole(name: str) -> None:
    case = CASES[name]
    for batches in (case.batches, case.batches[::-1]):
        assert float(fed(name, batches).compute()) == pytest.approx(case.truth, rel=1e-7)


@every
def test_forward_returns_the_batch_and_keeps_the_whole(name: str) -> None:
    case = CASES[name]
    metric = case.make()
    first = metric(*case.batches[0])
    assert float(first) == float(fed(name, case.batches[:1]).compute())
    for batch in case.batches[2:]:
        metric(*batch)
    want = fed(name, [case.batches[0], *case.batches[2:]])
    assert float(metric.compute()) == float(want.compute())


@every
def test_reset_forgets(name: str) -> None:
    case = CASES[name]
    metric = fed(name, case.batches)
    metric.reset()
    metric.update(*case.batches[0])
    assert float(metric.compute()) == float(fed(name, case.batches[:1]).compute())


@every
def test_states_survive_a_checkpoint(name: str) -> None:
    case = CASES[name]
    metric = fed(name, case.batches[:3])
    metric.persistent(True)
    other = case.make()
    other.persistent(True)
    other.load_state_dict(copy.deepcopy(metric.state_dict()))
    for batch in case.batches[3:]:
        other.update(*batch)
    assert float(other.compute()) == float(fed(name, case.batches).compute())


def work(rank: int, folder: Path) -> None:
    """A process of two: every other batch of every metric, the last one idle on the second process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    answers = {}
    for name, case in CASES.items():
        answers[name] = float(fed(name, case.batches[rank::2]).compute())
        answers[f"{name} idle"] = float(fed(name, case.batches if rank == 0 else []).compute())
    torch.save(answers, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    folder = tmp_path_factory.mktemp("gloo")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(rank, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@every
@pytest.mark.parametrize("split", ["", " idle"])
@pytest.mark.filterwarnings("ignore:.*compute.*before.*update")
def test_two_processes_give_the_whole(name: str, split: str, two_processes: list[dict[str, float]]) -> None:
    first, second = (answers[name + split] for answers in two_processes)
    assert first == second
    assert first == pytest.approx(CASES[name].truth, rel=1e-7)


@pytest.mark.filterwarnings("ignore:.*compute.*before.*update")
def test_nothing_seen() -> None:
    assert MinMargin().compute() == torch.inf
    assert DirectionGap().compute().isnan()
    assert SelectionAccuracy().compute().isnan()


def test_min_margin_is_in_float64() -> None:
    metric = MinMargin()
    metric.update(torch.tensor([1e-9, 1.0]))
    assert metric.compute().dtype == torch.float64
    assert metric.compute().item() == float(torch.tensor(1e-9))


def test_directions_of_better() -> None:
    assert MinMargin.higher_is_better
    assert SelectionAccuracy.higher_is_better
    assert DirectionGap.higher_is_better is False
