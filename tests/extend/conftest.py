"""What a user registers in a test is gone after it, and so is the directory's module."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_maxmargin import keys
from lightning_maxmargin.core import losses, updates
from lightning_maxmargin.svm.norms import registry


@pytest.fixture(autouse=True)
def own_registries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    tables: list[dict] = [losses.LOSSES, updates.UPDATES, registry.NORMS, keys._KEYS]
    before, loaded = [dict(table) for table in tables], set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)
    for name in set(sys.modules) - loaded:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
