"""Every Python block of README and docs is run, or says in its first line why not: ``# not run: REASON``.

The blocks of a page are run one after the other, as a reader would type them, in one empty directory. A block that
begins with ``# torchrun ...`` is run by it. Those of docs/extending.md are run by tests/extend.
"""

from __future__ import annotations

import contextlib
import csv
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_maxmargin import keys
from lightning_maxmargin.cli import main
from lightning_maxmargin.core import losses
from lightning_maxmargin.text.planted import review_sentences
from tests.conftest import ROOT

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: By tests/extend.
ELSEWHERE = {"docs/extending.md"}
#: Pages whose blocks train for more than a moment.
QUICK = {"docs/concepts/limits.md", "docs/concepts/saturation.md", "docs/concepts/certificates.md"}
#: Pages that read a model which the commands above their blocks leave in runs/mine.
OF_A_RUN = {"README.md", "docs/text.md"}


def pages() -> list[Any]:
    """Names of the pages that have a block, the long ones marked slow."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    names = [path.relative_to(ROOT).as_posix() for path in files if "_build" not in path.parts]
    names = [name for name in names if name not in ELSEWHERE and blocks(name)]
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


def blocks(name: str) -> list[str]:
    return BLOCK.findall((ROOT / name).read_text())


@pytest.fixture
def own_tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a page registers is gone after it."""
    monkeypatch.setattr(keys, "_KEYS", dict(keys._KEYS))
    known = dict(losses.LOSSES)
    yield
    losses.LOSSES.clear()
    losses.LOSSES.update(known)


@pytest.mark.parametrize("name", pages())
def test_the_blocks_of_a_page_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_tables: None) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAXMARGIN_CACHE", str(tmp_path / "cache"))
    if name in OF_A_RUN:
        train_a_model(tmp_path)
    # As a module of its own, so that classes of a block can be pickled.
    space: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(name):
        if block.startswith("# not run:"):
            assert len(block.split("\n")[0]) > len("# not run: x"), "say why"
        elif block.startswith("# torchrun"):
            run_by_torchrun(block, tmp_path)
        else:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(block, f"{name}, a block", "exec"), space)


def run_by_torchrun(block: str, folder: Path) -> None:
    words = block.split("\n")[0].removeprefix("# torchrun").split()
    (folder / words[-1]).write_text(block)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def train_a_model(folder: Path) -> None:
    """The first command of the page on a hundred packaged sentences, for a few steps."""
    texts, labels = review_sentences()
    with (folder / "reviews.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("text", "label"))
        # The corpus begins with the sentences of one label and ends with those of the other.
        rows.writerows(pair for pair in list(zip(texts, labels, strict=True))[:: len(texts) // 100])
    quiet = ["--wandb", "disabled", "--trainer.enable_progress_bar", "false"]
    words = ["fit", "--config", "text/finetune", "--data.train", "reviews.csv", "--run_dir", "runs/mine"]
    assert main([*words, "--trainer.max_epochs", "1", *quiet]) == 0
