"""The notebooks are their scripts, stored without outputs, and run: no cell fails, nothing is advertised."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ("theory", "text", "transformer")
#: Lines on standard error that are news of a run.
ALLOWED = re.compile(
    r"`Trainer\.fit` stopped: `max_(steps|epochs)=\d+` reached\.|HeadMonitor: \d+ attention layers watched, \d+ heads"
)
ADVERTISED = re.compile("tip:|litlogger|litmodels|lightning.ai|try installing|tensorboardX|ipywidgets|wandb", re.I)
#: What must be seen of each: in this order, the beginning of what a cell shows or prints.
SHOWN = {
    "theory": ["Sequences: 3", "JointSolution, relaxed limit", "none negative: True", "MarginMonitor at step 3,000",
               "image/png", "infeasible", "MarginMonitor at step 2,000", "certified"],
    "text": ["TextData", "test accuracy", "TextMonitor at step", "training documents as they are read now", "good",
             "bad", "weights sum to 1.000000", "comprehensiveness"],
    "transformer": ["validation accuracy", "encoder.layer.5", "HeadMonitor at step 50", "image/png", "image/png",
                    "[CLS]", "[SEP]", "certified"],
}  # fmt: skip


def made_of(script: str) -> str:
    """The notebook of a script, by scripts/notebook.py."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from notebook import notebook  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    return str(notebook(script))


def test_every_notebook_is_here() -> None:
    assert sorted(path.stem for path in (ROOT / "docs" / "tutorials").glob("*.ipynb")) == sorted(NAMES)
    assert sorted(path.stem for path in (ROOT / "scripts" / "tutorials").glob("*.py")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_its_script_without_outputs(name: str) -> None:
    script = (ROOT / "scripts" / "tutorials" / f"{name}.py").read_text(encoding="utf-8")
    text = (ROOT / "docs" / "tutorials" / f"{name}.ipynb").read_text(encoding="utf-8")
    hint = f"run: python scripts/notebook.py scripts/tutorials/{name}.py docs/tutorials/{name}.ipynb"
    assert text == made_of(script), hint
    code = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    lines = [line for line in "\n".join(code).split("\n") if line.strip()]
    assert lines == [x for x in script.split("# %%", 1)[1].split("\n") if x.strip() and not x.startswith("#")][1:]


def executed(name: str, folder: Path) -> list[Any]:
    """The cells of a notebook, run in this folder; the first that fails raises."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    found = nbformat.read(ROOT / "docs" / "tutorials" / f"{name}.ipynb", as_version=4)
    place = {"metadata": {"path": str(folder)}}
    return list(nbclient.NotebookClient(found, timeout=300, kernel_name="python3", resources=place).execute().cells)


def outputs(cells: list[Any]) -> list[str]:
    """All that is shown, in order: text of pages and streams, and the kinds of pictures."""
    shown = []
    for output in (output for cell in cells for output in cell.get("outputs", ())):
        if output.output_type == "stream":
            shown.append(output.text)
            continue
        shown.append(" ".join([*output.data, re.sub("<[^>]+>", "", output.data.get("text/html", ""))]))
        shown[-1] += output.data.get("text/plain", "")
    return shown


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name != "theory":
        pytest.importorskip("transformers")
    for key, value in {"TMPDIR": tmp_path / "tmp", "MAXMARGIN_CACHE": tmp_path / "cache"}.items():
        monkeypatch.setenv(key, str(value))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for folder in ("tmp", "empty"):
        (tmp_path / folder).mkdir()
    cells = executed(name, tmp_path / "empty")
    errors = [o.text for cell in cells for o in cell.get("outputs", ()) if o.get("name") == "stderr"]
    assert [line for line in "".join(errors).split("\n") if line and not ALLOWED.fullmatch(line)] == []
    shown = outputs(cells)
    assert [text for text in shown if ADVERTISED.search(text)] == []
    at = 0
    for wanted in SHOWN[name]:
        found = next((i for i in range(at, len(shown)) if wanted in shown[i]), None)
        assert found is not None, f"{wanted!r} is not shown after output {at} of {name}"
        at = found
    assert list((tmp_path / "empty").iterdir()) == [], "a notebook leaves nothing where it runs"
