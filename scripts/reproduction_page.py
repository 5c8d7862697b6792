"""Makes docs/reproduction.md and its figures from a finished run of every experiment.

maxmargin reproduce all --out runs/reproduction
.venv/bin/python scripts/reproduction_page.py --run_dir runs/reproduction
"""

from __future__ import annotations

import shutil
from pathlib import Path

from jsonargparse import auto_cli

DOCS = Path(__file__).parent.parent / "docs"
HEAD = """# Reproduction

Every claim of the papers' experiments beside what this library finds, made by `maxmargin reproduce all` and
`scripts/reproduction_page.py`. *published* is what the paper or its public code shows, *ours* is measured with exact
gradients, *naive* with autograd through softmax, *asked* decides whether the claim holds. Where ours differs from what
was published, the last column says why. Experiments, data and tolerances are the files in `configs/reproduce/`.

"""


def main(run_dir: str) -> None:
    """Copies table and figures.

    Args:
        run_dir: of `maxmargin reproduce all`.
    """
    run = Path(run_dir)
    text = (run / "reproduction.md").read_text(encoding="utf-8")
    figures = DOCS / "reproduction"
    shutil.rmtree(figures, ignore_errors=True)
    figures.mkdir()
    for picture in sorted(run.glob("*/figure.png")):
        name = picture.parent.name
        shutil.copy(picture, figures / f"{name}.png")
        text = text.replace(f"]({name}/figure.png)", f"](reproduction/{name}.png)")
    (DOCS / "reproduction.md").write_text(HEAD + text, encoding="utf-8")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
