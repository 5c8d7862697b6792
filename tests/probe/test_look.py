"""Many sequences are looked at as they lie, in pieces, and on two threads: the numbers are those of few."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_maxmargin.core import Sequences, TokenSelector, products
from lightning_maxmargin.core.ahead import beside
from lightning_maxmargin.probe import parts
from lightning_maxmargin.probe.selector import Probe
from lightning_maxmargin.svm import distributed
from lightning_maxmargin.svm.blocks import BlockShards
from lightning_maxmargin.svm.sources import MappedSource


def problem(dtype: torch.dtype, own_values: bool, masked: bool, count: int = 40) -> Sequences:
    """Documents of 6 tokens of 5, one of each along (1, 0, ...), and of those with label 1 along the second too."""
    g = torch.Generator().manual_seed(3)
    keys = torch.randn(count, 6, 5, generator=g, dtype=torch.float64)
    labels = torch.where(torch.rand(count, generator=g) < 0.5, 1.0, -1.0)
    keys[:, 2, 0] += 6
    keys[:, 2, 1] += 6 * labels
    mask = torch.ones(count, 6, dtype=torch.bool)
    mask[::3, 4:] = False
    values = keys.to(dtype) * 2 + 1 if own_values else None
    return Sequences(keys.to(dtype), labels, values, mask=mask if masked else None)


def model(**options: Any) -> TokenSelector:
    torch.manual_seed(0)
    head = {} if options.get("head") == "mlp" else {"head_init": "normal"}
    found = TokenSelector(dim=5, attention_init="normal", **head, **options).double()
    with torch.no_grad():
        next(iter(found.attention_parameters.values()))[0] += 3
    return found


def same(found: Any, other: Any) -> None:
    assert torch.equal(found.selected, other.selected)
    for key, value in found.values.items():
        number = isinstance(value, float)
        assert other.values[key] == (pytest.approx(value, rel=1e-10, abs=1e-10) if number else value), key


@pytest.mark.parametrize("options", [{}, {"parametrization": "W"}, {"query": "own"}, {"head": "mlp"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("own_values", "masked"), [(False, False), (False, True), (True, True)])
def test_as_they_lie(
    dtype: torch.dtype, own_values: bool, masked: bool, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, watched = problem(dtype, own_values, masked), model(**options)
    few = Probe(data).measure(watched)
    monkeypatch.setattr(parts, "NUMBERS_IN_MEMORY", 0)
    monkeypatch.setattr(parts, "NUMBERS_IN_BLOCK", 7 * 30)
    monkeypatch.setattr(products, "NUMBERS_IN_CACHE", 4 * 5)
    # Blocks of seven sequences, and of labels, also where the solvers look; however few there are.
    monkeypatch.setattr(distributed, "NUMBERS", 35)
    monkeypatch.setattr(distributed, "NUMBERS_AT_ONCE", 0)
    monkeypatch.setattr(MappedSource.__init__, "__defaults__", (7 * 30,))
    checked, check = [], BlockShards._checked
    monkeypatch.setattr(BlockShards, "_checked", lambda self, *given: checked.append(1) or check(self, *given))
    many = Probe(data).measure(watched)
    assert len(checked) >= 6
    same(few, many)
    threads = Probe(data).measure(watched, threads=2)
    assert threads.values == many.values
    assert torch.equal(threads.selected, many.selected)


def test_copies_of_the_selected_token_have_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    data = problem(torch.float16, False, False)
    keys = data.keys.clone()
    keys[:, 5] = keys[:, 2]
    data = Sequences(keys, data.labels)
    data.copies()
    few = Probe(data).measure(model())
    assert few.values["margin/attention"] != 0
    monkeypatch.setattr(parts, "NUMBERS_IN_MEMORY", 0)
    same(few, Probe(data).measure(model()))


@pytest.mark.parametrize("threads", [1, 2])
def test_what_fails_beside_is_raised(threads: int) -> None:
    def fails() -> Tensor:
        raise ValueError("no answer")

    for pair in ((fails, lambda: 1), (lambda: 1, fails)):
        with pytest.raises(ValueError, match="no answer"):
            beside(*pair, threads)
