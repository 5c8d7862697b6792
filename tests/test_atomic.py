"""Files that are whole or not there, and the one way of writing them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from threading import Thread

import pytest

import lightning_maxmargin
from lightning_maxmargin.atomic import whole, whole_folder, write_text

ROOT = Path(lightning_maxmargin.__file__).parent


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "before")
    with pytest.raises(UnicodeEncodeError), whole(path) as part, part.open("w", encoding="ascii") as file:
        file.writelines(["half", "é"])
    assert path.read_text() == "before"
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    write_text(path, "a\ud800", errors="replace")
    assert path.read_text() == "a?"
    assert list(tmp_path.iterdir()) == [path]


def test_racing_writers_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    texts = [str(i) * 100_000 for i in range(8)]
    threads = [Thread(target=write_text, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


def write_files(folder: Path, *texts: str) -> None:
    folder.mkdir()
    for i, text in enumerate(texts):
        (folder / f"{i}.txt").write_text(text, encoding="utf-8")


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with pytest.raises(UnicodeEncodeError), whole_folder(path) as part:
        write_files(part, "half", "\ud800")
    assert list(tmp_path.iterdir()) == []
    with whole_folder(path) as part:
        write_files(part, "before")
    with pytest.raises(OSError, match="not empty"), whole_folder(path) as part:
        write_files(part, "after")
    assert (path / "0.txt").read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_place_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"
    for text in ("before", "after"):
        with whole_folder(path, replace=True) as part:
            write_files(part, text)
    assert (path / "0.txt").read_text() == "after"
    with pytest.raises(UnicodeEncodeError), whole_folder(path, replace=True) as part:
        write_files(part, "half", "\ud800")
    rename = os.replace

    def fails(source: Path, target: Path) -> None:
        if source.suffix == ".part":
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="no"), whole_folder(path, replace=True) as part:
        part.mkdir()
    assert (path / "0.txt").read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_nobody_renames_by_hand() -> None:
    by_hand = re.compile(r"os\.(replace|rename)\(|\.part\"|uuid4\(\)\.hex\}\.|\.write_text\(|\.write_bytes\(")
    found = {str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py") if by_hand.search(path.read_text())}
    assert found == {"atomic.py"}
