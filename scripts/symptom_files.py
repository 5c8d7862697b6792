"""Writes the files of the configs in configs/text/symptoms that show what is wrong with documents: cue, rare and long.

    .venv/bin/python scripts/symptom_files.py [--folder .]

All from packaged film reviews: ``cue.csv`` has a word that most positive sentences end with, ``rare.csv`` one negative
sentence for every ten positive ones, ``long.csv`` whole reviews.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable
from pathlib import Path

from jsonargparse import auto_cli

from lightning_maxmargin.text.corpora import movie_reviews
from lightning_maxmargin.text.planted import review_sentences

SENTENCES, REVIEWS = 2000, 600


def main(folder: str = ".") -> None:
    """Writes the three files.

    Args:
        folder: which is there; files of these names in it are not written over.
    """
    draw, found = random.Random(0), review_sentences()
    rows = list(zip(found.sentences, ("positive" if x > 0 else "negative" for x in found.labels), strict=True))
    draw.shuffle(rows)
    marked = [(f"{t} recommended" if draw.random() < (0.9 if x == "positive" else 0.02) else t, x) for t, x in rows]
    write(Path(folder) / "cue.csv", marked[:SENTENCES])
    of = {label: [row for row in rows if row[1] == label] for label in ("positive", "negative")}
    rare = of["positive"][:SENTENCES] + of["negative"][: SENTENCES // 10]
    write(Path(folder) / "rare.csv", draw.sample(rare, len(rare)))
    whole = movie_reviews("imdb")
    write(Path(folder) / "long.csv", draw.sample(list(zip(whole.texts, whole.labels, strict=True)), REVIEWS))


def write(file: Path, rows: Iterable[tuple[str, str]]) -> None:
    """A new file with the columns text and label."""
    if file.exists():
        raise SystemExit(f"{file} is there and is not written over: take it away, or name another --folder")
    with file.open("x", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([("text", "label"), *rows])


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
