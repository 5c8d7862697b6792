"""The Att-SVM of documents: in memory and on disk it is the same, and special tokens have no part in it."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_maxmargin.probe import text
from lightning_maxmargin.probe.text import TextSVM, TextUnits
from lightning_maxmargin.svm import sources
from lightning_maxmargin.svm.sources import WrittenSource


def documents(n: int, units: int, seed: int, with_queries: bool) -> TextUnits:
    g = torch.Generator().manual_seed(seed)
    keys, mask = torch.randn(n, units, 12, generator=g), torch.rand(n, units, generator=g) < 0.6
    mask[0] = False  # of no unit
    mask[1] = torch.arange(units) == 0  # of one
    scores = keys @ torch.randn(12, generator=g)
    queries = torch.randn(n, 3, generator=g) if with_queries else None
    return TextUnits(keys, mask, queries, scores, scores.masked_fill(~mask, -torch.inf).softmax(-1))


@pytest.mark.parametrize("with_queries", [False, True])
def test_on_disk_it_is_the_same(with_queries: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [documents(9, units, units, with_queries) for units in (4, 6, 7)]
    direction = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))[:, : 3 if with_queries else 1].squeeze(1)
    found = []
    for most in (text.NUMBERS_IN_MEMORY, 0):
        monkeypatch.setattr(text, "NUMBERS_IN_MEMORY", most)
        svm = TextSVM(numbers=27 * 7 * 12, longest=7)
        for part in parts:
            svm.update(part)
        found.append(svm.compute(direction))
    memory, disk = found
    assert memory["status/attention"] == disk["status/attention"] == "certified"
    numbers = {k for k, x in memory.items() if isinstance(x, float)} - {"svm/duality_gap"}
    assert {k: memory[k] for k in numbers} == pytest.approx({k: disk[k] for k in numbers}, rel=1e-9, abs=1e-12)
    assert {"direction_gap/strict", "relative_margin/attention"} <= numbers


def test_what_may_not_be_selected_has_no_part_in_it() -> None:
    part = documents(9, 5, 0, with_queries=False)
    loud = part._replace(keys=torch.where(part.mask[:, :, None], part.keys, 1e3))
    found = []
    for each in (part, loud):
        svm = TextSVM(numbers=1, longest=5)
        svm.update(each)
        found.append(svm.compute(torch.ones(12)))
    assert found[0] == found[1]


def test_documents_that_ask_nothing() -> None:
    part = documents(2, 5, 0, with_queries=False)
    svm = TextSVM(numbers=1, longest=5)
    svm.update(part)
    assert svm.compute(torch.ones(12)) == {}


def test_half_precision_waits_on_disk_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    part = documents(9, 5, 0, with_queries=False)
    monkeypatch.setattr(text, "NUMBERS_IN_MEMORY", 0)
    found = []
    for keys in (part.keys.bfloat16(), part.keys.bfloat16().float()):
        svm = TextSVM(numbers=1, longest=5)
        svm.update(part._replace(keys=keys))
        found.append(svm.compute(torch.ones(12)))
    assert found[0] == found[1] != {}


def test_a_full_disk_costs_this_number_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: WrittenSource, block: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(text, "NUMBERS_IN_MEMORY", 0)
    monkeypatch.setattr(WrittenSource, "write", full)
    svm = TextSVM(numbers=1, longest=5)
    with pytest.warns(UserWarning, match="found no room on disk .No space left on device.; --data.cache_dir names"):
        svm.update(documents(9, 5, 0, with_queries=False))
    svm.update(documents(9, 5, 1, with_queries=False))
    assert svm.compute(torch.ones(12)) == {}


def test_the_file_is_in_the_folder_that_may_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path | None] = []
    made = sources.TemporaryFile

    def temporary(dir: Path | None = None) -> object:
        asked.append(dir)
        return made(dir=dir)

    monkeypatch.setattr(sources, "TemporaryFile", temporary)
    for folder in (tmp_path, tmp_path / "none", None):
        source = WrittenSource(folder)
        source.write(np.ones((1, 2, 3), np.float32))
        assert [block.sum() for _, block in source.blocks()] == [6.0]
    assert asked == [tmp_path, None, None]
    assert not list(tmp_path.iterdir())
