"""metrics.csv: whole rows or none, whatever the disk does, and never a file that has lost what it held."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.figures.table import read_table
from lightning_maxmargin.run import rows as rows_module
from lightning_maxmargin.run.rows import RowsLogger
from tests.conftest import config

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_new_columns_keep_the_rows_before(tmp_path: Path) -> None:
    logger = RowsLogger(tmp_path)
    for step, row in enumerate(({"a": 1.0}, {"a": 2.0}, {"b": 3.0}, {"a": 4.0, "b": 5.0})):
        logger.log_metrics(row, step)
    found = rows(tmp_path)
    assert [row["a"] for row in found] == ["1.0", "2.0", "", "4.0"]
    assert [row["b"] for row in found] == ["", "", "3.0", "5.0"]
    assert [row["step"] for row in found] == ["0", "1", "2", "3"]


def test_rows_of_another_process_stay(tmp_path: Path) -> None:
    """Training is forked, and its test is not."""
    RowsLogger(tmp_path).log_metrics({"b": 1.0, "a": 2.0}, 0)
    header, row = (tmp_path / "metrics.csv").read_text().splitlines()
    # In an order of its own, as an older version may have written it.
    (tmp_path / "metrics.csv").write_text("\n".join(",".join(x.split(",")[::-1]) for x in (header, row)) + "\n")
    later = RowsLogger(tmp_path)
    later.log_metrics({"a": 3.0, "b": 4.0}, 1)
    later.log_metrics({"c": 5.0}, 2)
    assert [(row["a"], row["b"], row["c"]) for row in rows(tmp_path)] == [
        ("2.0", "1.0", ""), ("3.0", "4.0", ""), ("", "", "5.0"),
    ]  # fmt: skip


def test_a_run_that_goes_on_leaves_out_what_it_makes_again(tmp_path: Path) -> None:
    """Once, where it begins to train: the process that tests afterwards finds the rows of forked ones."""
    first = RowsLogger(tmp_path)
    for step in (1, 2, 5):
        first.log_metrics({"a": float(step)}, step)
    made = RowsLogger(tmp_path, kept_to=2)
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2", "5"], "a run that is refused touches no row"
    child = os.fork()
    if not child:
        try:
            made.begin()
            made.log_metrics({"a": 3.0}, 3)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    made.log_metrics({"test": 1.0}, 3)
    assert [(row["step"], row["a"], row["test"]) for row in rows(tmp_path)] == [
        ("1", "1.0", ""), ("2", "2.0", ""), ("3", "3.0", ""), ("3", "", "1.0"),
    ]  # fmt: skip
    RowsLogger(tmp_path).begin()
    assert not (tmp_path / "metrics.csv").exists(), "from the first step on nothing is kept"


@pytest.mark.parametrize("column", ["a", "b"])
def test_on_a_full_disk_rows_wait(column: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger, is_full = RowsLogger(tmp_path), False
    logger.log_metrics({"a": 0.0}, 0)
    before = (tmp_path / "metrics.csv").read_bytes()
    append, write = rows_module._append, rows_module.write_text

    def half(path: Path, names: Any, given: Any) -> None:
        if is_full:
            raise FULL
        append(path, names, given)

    def whole(path: Path, text: str, **how: Any) -> None:
        if is_full:
            raise FULL
        write(path, text, **how)

    monkeypatch.setattr(rows_module, "_append", half)
    monkeypatch.setattr(rows_module, "write_text", whole)
    is_full = True
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in (1, 2, 3):
            logger.log_metrics({column: float(step)}, step)
    assert (tmp_path / "metrics.csv").read_bytes() == before
    assert len([w for w in said if "No space left on device" in str(w.message)]) == 1
    is_full = False
    logger.log_metrics({"a": 4.0}, 4)
    found = rows(tmp_path)
    assert [row["step"] for row in found] == ["0", "1", "2", "3", "4"]
    assert [row[column] for row in found][1:4] == ["1.0", "2.0", "3.0"]


def test_half_a_row_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("a,step\n1,0\n")

    class Half:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Half:
            return self

        def __exit__(self, *_: Any) -> None:
            self.file.close()

        def write(self, text: str) -> None:
            self.file.write(text[:3])
            self.file.flush()
            raise FULL

    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *args, **more: Half(opened(self, *args, **more)))
    with pytest.raises(OSError, match="No space"):
        rows_module._append(path, ["a", "step"], [{"a": 2, "step": 1}])
    monkeypatch.undo()
    assert path.read_text() == "a,step\n1,0\n"


def test_a_header_is_rewritten_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill at any moment of it leaves the old file: nothing else is opened for writing."""
    logger = RowsLogger(tmp_path)
    logger.log_metrics({"a": 0.0}, 0)
    before = (tmp_path / "metrics.csv").read_bytes()

    def killed(*_: Any) -> None:
        assert (tmp_path / "metrics.csv").read_bytes() == before
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        logger.log_metrics({"b": 1.0}, 1)
    assert (tmp_path / "metrics.csv").read_bytes() == before


HEADER, ROW = b"a,step\r\n", b"1.5,%d\r\n"


@pytest.mark.parametrize(
    ("content", "steps"),
    [
        (HEADER + ROW % 1 + ROW % 2 + b"2.5", ["1", "2"]),
        (HEADER + ROW % 1 + ROW % 2 + b"2.5,3", ["1", "2"]),  # of 30, perhaps
        (HEADER + ROW % 1 + b"2.5" + bytes(40), ["1"]),
        (HEADER + ROW % 1 + bytes(40), ["1"]),
        (HEADER + b"1.5", []),
        (HEADER[:3], []),
        (bytes(40), []),
    ],
)
def test_a_row_that_a_power_failure_has_torn_is_left_out(content: bytes, steps: list[str], tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_bytes(content)
    logger = RowsLogger(tmp_path, kept_to=100)
    with pytest.warns(UserWarning, match="ends in half a row"):
        logger.begin()
    logger.log_metrics({"a": 9.0}, 9)
    assert [row["step"] for row in rows(tmp_path)] == [*steps, "9"]


@pytest.mark.parametrize("content", [b"", HEADER, HEADER + ROW % 1])
def test_a_file_that_is_whole_is_taken_without_a_word(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RowsLogger(tmp_path, kept_to=100).begin()
    assert read_table(tmp_path / "metrics.csv").names == (["a", "step"] if content else [])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (HEADER + b"1.5\r\n" + ROW % 2, "line 2: 1 cells under 2 names"),
        (HEADER + ROW % 1 + b"1,2,3\r\n" + ROW % 2, "line 3: 3 cells under 2 names"),
        (HEADER + ROW % 1 + b"1\x00,2\r\n" + ROW % 2, "line 3: a is '1"),
        (HEADER + b"1,half\r\n", "line 2: step is 'half', no number"),
        (HEADER + b"1,nan\r\n", "line 2: step is 'nan', no whole number"),
        (HEADER + ROW % 1 + b"\xff,2\r\n", "line 3: it is no text"),
        (b"a,b\r\n" + ROW % 1, "line 1: no column `step`"),
        (HEADER + b'"1,2\r\n', "damaged: unexpected end of data"),
    ],
)
def test_a_damaged_row_is_told_before_the_run_goes_on(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        RowsLogger(tmp_path, kept_to=100)
    assert str(refused.value).startswith(f"run_dir: {path} is damaged")
    assert said in str(refused.value)
    assert path.read_bytes() == content


def test_a_run_whose_rows_are_damaged_is_refused_and_one_with_a_torn_row_goes_on(maxmargin: Any) -> None:
    words = ("fit", "--config", config("joint/relaxed"), "--trainer.max_steps")
    run = maxmargin(*words, "20")
    path, go_on = run.run_dir / "metrics.csv", ("--run_dir", str(run.run_dir), "--ckpt_path", "last")
    whole = path.read_bytes()
    path.write_bytes(whole[:400] + whole[500:])
    before = {file: file.stat().st_mtime_ns for file in run.run_dir.iterdir() if file.is_file()}
    refused = maxmargin(*words, "30", *go_on)
    assert refused.status == 2
    assert f"run_dir: {path} is damaged in line " in refused.error
    assert before == {file: file.stat().st_mtime_ns for file in run.run_dir.iterdir() if file.is_file()}
    refused = maxmargin("report", str(run.run_dir))
    assert refused.status == 2
    assert f"{path} is damaged in line " in refused.error
    path.write_bytes(whole[:-20])
    with pytest.warns(UserWarning, match="ends in half a row"):
        assert maxmargin("report", str(run.run_dir)).status == 0
    with pytest.warns(UserWarning, match="ends in half a row"):
        assert maxmargin(*words, "30", *go_on).status == 0
    assert rows(run.run_dir)[-1]["step"] == "30"


def test_rows_are_made_safe_once_a_second_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synchronised: list[float] = []
    now = 100.0
    monkeypatch.setattr(rows_module.time, "monotonic", lambda: now)
    monkeypatch.setattr(rows_module, "synchronise", lambda path: synchronised.append(now))
    logger = RowsLogger(tmp_path)
    for now in (100.0, 100.5, 101.0, 101.25, 103.0):
        logger.log_metrics({"a": now}, int(now))
    # The first made the file, on the disk.
    assert synchronised == [100.5, 103.0]
    logger.finalize("success")
    assert synchronised == [100.5, 103.0, 103.0]


def test_a_slow_disk_is_asked_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked = 100.0, []

    def slow(path: Path) -> None:
        nonlocal now
        asked.append(now)
        now += 1.0

    monkeypatch.setattr(rows_module.time, "monotonic", lambda: now)
    monkeypatch.setattr(rows_module, "synchronise", slow)
    logger = RowsLogger(tmp_path)
    for step in range(200):
        logger.log_metrics({"a": 1.0}, step)
        now += 1.0
    assert 3 <= len(asked) <= 5, "2 % of 200 s"


class Removes(Callback):
    """Removes the run directory in the middle, or puts a file in its place."""

    def __init__(self, at: int = 30, file: bool = False) -> None:
        self.at, self.file, self.is_done = at, file, False

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step >= self.at and not self.is_done:
            self.is_done = True
            shutil.rmtree(trainer.default_root_dir)
            if self.file:
                Path(trainer.default_root_dir).write_text("")


def removing(**options: Any) -> str:
    return json.dumps([{"class_path": "tests.reliability.test_rows.Removes", "init_args": options}])


@pytest.mark.parametrize("name", ["joint/relaxed", pytest.param("text/planted", marks=pytest.mark.slow)])
def test_a_run_directory_that_is_removed_is_made_again(name: str, maxmargin: Any) -> None:
    # With rows before it is removed, and at the same steps in both runs.
    steps = ("--model.inner_steps", "10", "--monitor.budget", "1") if name == "text/planted" else ()
    words = ("fit", "--config", config(name), "--trainer.max_steps", "100", *steps)
    sound = maxmargin(*words)
    with pytest.warns(UserWarning, match="was removed while training; it is made again with all its rows") as said:
        run = maxmargin(*words, "--trust-config", "--trainer.callbacks", removing())
    assert run.status == 0, run.err
    assert len([w for w in said if "was removed" in str(w.message)]) == 1
    timed = ("monitor/seconds", "monitor/final_seconds", "monitor/lag_steps", "seconds")
    assert untimed(rows(run.run_dir), timed) == untimed(rows(sound.run_dir), timed)
    assert untimed([run.summary], timed) == untimed([sound.summary], timed)
    assert {path.name for path in sound.run_dir.iterdir()} == {path.name for path in run.run_dir.iterdir()}
    assert maxmargin("report", str(run.run_dir)).status == 0
    again = maxmargin(
        *words[:3], "--trainer.max_steps", "110", *steps, "--run_dir", str(run.run_dir), "--ckpt_path", "last"
    )
    assert again.status == 0, again.err


def test_a_file_in_place_of_the_run_directory_is_told_in_a_line(maxmargin: Any) -> None:
    words = ("fit", "--config", config("joint/relaxed"), "--trainer.max_steps", "100", "--trust-config")
    with pytest.warns(UserWarning, match="cannot be written .*; training goes on, its rows wait"):
        run = maxmargin(*words, "--trainer.callbacks", removing(file=True))
    assert run.status == 1
    assert str(run.run_dir) in run.error
    assert "Traceback" not in run.err


def untimed(rows: list[dict[str, Any]], keys: tuple[str, ...]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in keys} for row in rows]
