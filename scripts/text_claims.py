"""Measures the text pipeline on sets with known answers, by the command line; exit status 1 if a claim does not hold.

    .venv/bin/python scripts/text_claims.py --data ../shared/data [--out docs/claims.md] [--only toxic] [--runs DIR]

``--data`` has the folders cad_imdb (counterfactual reviews), toxic_spans and trec_qc, each with a README that says
where it comes from; the rest is packaged. Needs the extras text and test. Takes about two hours on one CPU thread,
most of it encoding, which is kept in MAXMARGIN_CACHE.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import claim
import numpy as np
from claim import Row, command, fit, maxmargin, report, summary
from jsonargparse import auto_cli
from rich.progress import track

SEEDS = (0, 1, 2)
FINETUNE = "text/finetune"
#: Documents of faithfulness, which is not claimed, and of integrated gradients: both encode often.
FEW = "--documents 40"
ALL = f"{FEW} --group pair --baselines all"
#: Where neither is asked for.
NONE = "--documents 2 --gradients false"


# --- files --------------------------------------------------------------------------------------------------------


def read(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write(name: str, rows: Sequence[dict[str, Any]]) -> Path:
    file = claim.RUNS / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def counterfactual(data: Path) -> None:
    """Both reviews of each pair; the words that people changed are the rationale."""
    for split in ("train", "test"):
        rows = []
        for pair in read(data / "cad_imdb" / f"{split}.jsonl.gz"):
            for side in (pair["original"], pair["revised"]):
                label = "positive" if side["label"] else "negative"
                rows.append({**spans(side["words"], side["edited"]), "label": label, "pair": pair["pair"]})
        write(f"counterfactual_{split}", rows)
        if split == "train":
            write("reviews_1000", rows[:1000])


def spans(words: Sequence[str], edited: Sequence[int]) -> dict[str, Any]:
    """The text of the words, and half-open spans of those that were edited."""
    found, at = [], 0
    for word, was_edited in zip(words, edited, strict=True):
        if was_edited:
            found.append([at, at + len(word)])
        at += len(word) + 1
    return {"text": " ".join(words), "rationale": found}


def toxic(data: Path) -> None:
    """Comments that every annotator marked, and those that at most a third did; what most marked is the rationale."""
    rows = []
    for comment in read(data / "toxic_spans" / "annotations_full.jsonl.gz"):
        marks = [x["spans"] for x in comment["annotations"] if x["spans"]]
        asked = len(comment["annotations"])
        if asked < 3 or not (len(marks) == asked or len(marks) <= asked / 3):
            continue
        is_toxic = len(marks) == asked
        rationale = majority(marks, len(comment["text"])) if is_toxic else []
        rows.append({"text": comment["text"], "label": "toxic" if is_toxic else "civil", "rationale": rationale})
    random.Random(0).shuffle(rows)
    write("toxic_train", rows[:3000])
    write("toxic_test", rows[3000:4500])


def majority(marks: Sequence[Sequence[Sequence[int]]], length: int) -> list[list[int]]:
    """Half-open spans of the characters that more than half of the annotators marked."""
    votes = np.zeros(length + 2)
    for own in marks:
        inside = np.zeros(length, dtype=bool)
        for start, end, *_ in own:
            inside[start:end] = True
        votes[1:-1] += inside
    edges = np.flatnonzero(np.diff((votes > len(marks) / 2).astype(int)))
    return edges.reshape(-1, 2).tolist()


def questions(data: Path) -> None:
    for split in ("train", "test"):
        rows = read(data / "trec_qc" / f"{split}.jsonl.gz")
        write(f"questions_{split}", [{"text": r["text"], "label": r["label"].split(":")[0]} for r in rows])


# --- claims -------------------------------------------------------------------------------------------------------


def told(config: str, options: str) -> str:
    """The command, with file names as a user has them."""
    return command(config, options.replace(f"{claim.RUNS}/", ""))


def of_files(name: str, more: str = "") -> str:
    return f"--data.train {claim.RUNS}/{name}_train.jsonl --data.test {claim.RUNS}/{name}_test.jsonl {more}".strip()


def seeded(name: str, options: str, config: str = FINETUNE) -> list[Path]:
    return [fit(f"{name}-{seed}", config, f"{options} --seed_everything {seed}") for seed in SEEDS]


def numbers(found: Sequence[Path], key: str) -> list[float]:
    return [summary(run)[key] for run in found]


def shown(values: Sequence[float]) -> str:
    """The mean, and the seeds."""
    return f"{mean(values):.3f} ({' '.join(f'{x:.3f}' for x in values)})"


def at_least(claim: str, limit: float, values: Sequence[float], config: str, options: str) -> Row:
    told_command = told(config, f"{options} --seed_everything 0|1|2")
    return Row(claim, f">= {limit:.3f}", shown(values), mean(values) >= limit, told_command)


def table(run: Path, more: str = "", name: str = "evaluated") -> dict[str, dict[str, Any]]:
    """Rows of ``maxmargin evaluate`` by method."""
    file = run / f"{name}.json"
    if not file.exists():
        maxmargin(["evaluate", str(run), "--output", str(file), *more.split()])
    return {row["method"]: row for row in json.loads(file.read_text())["rows"]}


def of_tables(tables: Sequence[dict[str, dict[str, Any]]], method: str, key: str) -> float:
    return mean(rows[method][key] for rows in tables)


def counterfactual_claims() -> Iterator[Row]:
    options = of_files("counterfactual")
    found = seeded("counterfactual", options)
    tables = [table(found[0], ALL), *(table(run, f"{NONE} --group pair") for run in found[1:])]
    accuracy, name = numbers(found, "test/accuracy"), "counterfactual reviews, 1,707 pairs"
    for baseline in ("TF-IDF", "mean-pool"):
        limit = of_tables(tables, baseline, "accuracy") + 0.02
        yield at_least(f"{name}: accuracy, {baseline}'s + .02", limit, accuracy, FINETUNE, options)
    both = [rows["selector s"]["both_right"] for rows in tables]
    yield at_least(f"{name}: both of a pair right (`evaluate --group pair`)", 0.78, both, FINETUNE, options)
    auprc = numbers(found, "rationale/auprc")
    yield at_least(f"{name}: AUPRC", 0.43, auprc, FINETUNE, options)
    for method in ("gradient x input", "integrated gradients"):
        limit = tables[0][f"{method}, fine-tuned"]["auprc"]
        about = f"{name}: AUPRC, that of {method} of fine-tuned mean pooling (`evaluate --baselines all`)"
        yield at_least(about, limit, auprc, FINETUNE, options)


def distracted(data: Path) -> None:
    """The test reviews with one packaged news sentence before each."""
    from lightning_maxmargin.reproduce.text_documents import news

    counterfactual(data)
    rows = [json.loads(line) for line in (claim.RUNS / "counterfactual_test.jsonl").read_text().splitlines()]
    sentences = news(len(rows), 1_000)
    write(
        "distracted_test",
        [
            {"text": f"{s} {r['text']}", "label": r["label"], "pair": r["pair"]}
            for r, s in zip(rows, sentences, strict=True)
        ],
    )


def predictions(run: Path, name: str) -> list[str]:
    """The label that the run gives each document of this file."""
    file = run / f"predicted-{name}.jsonl"
    if not file.exists():
        words = f"--config {run}/config.yaml --ckpt_path {run}/checkpoints/last.ckpt --data.predict"
        maxmargin(["predict", *words.split(), str(claim.RUNS / f"{name}.jsonl"), "--output", str(file)])
    return [json.loads(line)["label"] for line in file.read_text().splitlines()]


def distractor_claims() -> Iterator[Row]:
    options = of_files("counterfactual")
    found = seeded("counterfactual", options)
    labels = [json.loads(line)["label"] for line in (claim.RUNS / "distracted_test.jsonl").read_text().splitlines()]
    flips, lost = [], []
    for run in found:
        before, after = (np.array(predictions(run, name)) for name in ("counterfactual_test", "distracted_test"))
        flips.append(float((before != after).mean()))
        lost.append(float((before == labels).mean() - (after == labels).mean()))
    command_told = told(FINETUNE, f"{options} --seed_everything 0|1|2")
    about = "counterfactual reviews, a news sentence before each (`predict`)"
    yield Row(f"{about}: accuracy lost", "<= 0.010", shown(lost), mean(lost) <= 0.01, command_told)
    yield Row(f"{about}: predictions flipped", "<= 0.060", shown(flips), mean(flips) <= 0.06, command_told)
    there = f"--data {claim.RUNS}/distracted_test.jsonl {NONE}"
    pooled = [table(found[0], ALL), table(found[0], there, "evaluated-distracted")]
    pool = pooled[0]["mean-pool"]["accuracy"] - pooled[1]["mean-pool"]["accuracy"]
    yield Row(f"{about}: accuracy that mean pooling loses (`evaluate`)", "told", f"{pool:.3f}", True, command_told)


def toxic_claims() -> Iterator[Row]:
    options = of_files("toxic")
    found = seeded("toxic", options)
    auprc = numbers(found, "rationale/auprc")
    yield at_least("toxic comments: AUPRC", 0.75, auprc, FINETUNE, options)
    limit = of_tables([table(found[0], NONE)], "TF-IDF", "auprc")
    yield at_least("the same: TF-IDF's (`evaluate`)", limit, auprc, FINETUNE, options)
    auprc = numbers(seeded("rationale", options, "text/rationale"), "rationale/auprc")
    yield at_least("toxic comments, decay 4: AUPRC", 0.8, auprc, "text/rationale", options)


def question_claims() -> Iterator[Row]:
    options = of_files("questions")
    accuracy = numbers(seeded("questions", options), "test/accuracy")
    yield at_least("questions: accuracy", 0.95, accuracy, FINETUNE, options)


def sentence_claims() -> Iterator[Row]:
    options = "--data.train rotten-tomatoes"
    found = seeded("sentences", options)
    tables = [table(run, NONE) for run in found]
    for baseline in ("TF-IDF", "mean-pool"):
        limit, accuracy = of_tables(tables, baseline, "accuracy"), numbers(found, "test/accuracy")
        yield at_least(f"Rotten Tomatoes 7,500 / 1,030: accuracy, {baseline}'s", limit, accuracy, FINETUNE, options)


def transfer_claims() -> Iterator[Row]:
    (source, *_), options = seeded("counterfactual", of_files("counterfactual")), "--data.train rotten-tomatoes:1000"
    scratch = numbers(seeded("scratch", options), "test/accuracy")
    ways = {"p kept, v trained": "--model.train head", "both trained on": ""}
    for way, more in ways.items():
        begun = f"{options} --model.init_from {source}/model {more}".strip()
        accuracy = numbers(seeded(way.replace(" ", "-"), begun), "test/accuracy")
        about = f"counterfactual IMDB to 1,000 Rotten Tomatoes, {way}: accuracy, that from scratch"
        yield at_least(about, mean(scratch), accuracy, FINETUNE, begun)


def tuned_claims() -> Iterator[Row]:
    options = f"--data.train {claim.RUNS}/reviews_1000.jsonl --data.test {claim.RUNS}/counterfactual_test.jsonl"
    more = f"{options} --model.finetune_layers 2"
    found = seeded("tuned", more)
    tables = [table(run, f"--seed {seed} {NONE} --baselines all")
              for seed, run in enumerate(seeded("frozen", options))]  # fmt: skip
    about = "top two layers tuned, 1,000 reviews: "
    limit = of_tables(tables, "fine-tuned", "accuracy")
    yield at_least(f"{about}accuracy, ordinary fine-tuning's", limit, numbers(found, "test/accuracy"), FINETUNE, more)
    limit = 2 * of_tables(tables, "fine-tuned", "auprc")
    yield at_least(
        f"{about}AUPRC, twice that of its evidence", limit, numbers(found, "rationale/auprc"), FINETUNE, more
    )


def sized(data: Path) -> None:
    """1,200 reviews, and 10,000 documents of at least 128 word pieces: two reviews of one label each."""
    counterfactual(data)
    rows = [json.loads(line) for line in (claim.RUNS / "counterfactual_train.jsonl").read_text().splitlines()]
    write("reviews_1200", rows[:1200])
    of = {label: [r["text"] for r in rows if r["label"] == label] for label in ("positive", "negative")}
    pairs = [(label, of[label][i % len(of[label])], of[label][(7 * i + 1) % len(of[label])])
             for i in range(5000) for label in of]  # fmt: skip
    write("documents_10000", [{"text": f"{a} {b}", "label": label} for label, a, b in pairs])


def cost_claims() -> Iterator[Row]:
    """CPU seconds and memory, of whole commands and in a cache of their own."""
    cache = claim.RUNS / "cache-of-costs"
    shutil.rmtree(cache, ignore_errors=True)
    options = f"--data.train {claim.RUNS}/reviews_1200.jsonl --data.cache_dir {cache}"
    (cold, _), (warm, _) = (cost(f"cost-{name}", options) for name in ("cold", "warm"))
    own, _ = cost("cost-one-step", f"{options} --trainer.max_steps 1")
    pieces = sum(file.stat().st_size for file in cache.rglob("*.f16")) // 768
    run = summary(claim.RUNS / "cost-warm")
    spent = f"{warm - own:.1f} CPU s, of {warm:.1f} with imports, the last evaluation and reports"
    told_command = told(FINETUNE, "--data.train reviews_1200.jsonl")
    yield Row("1,200 reviews on the cache: training", "<= 15 CPU s", spent, warm - own <= 15, told_command)
    rate = pieces / max(cold - warm, 1e-9)
    yield Row("encoding, word pieces a CPU second", ">= 2,000", f"{rate:,.0f}", rate >= 2000, told_command)
    share = (run["monitor/seconds"] + run["monitor/final_seconds"]) / run["seconds"]
    yield Row("monitor's share of the run", "<= 0.05", f"{share:.3f}", share <= 0.05, told_command)
    large = f"--data.train {claim.RUNS}/documents_10000.jsonl --data.cache_dir {cache} --data.max_length 128"
    _, resident = cost("cost-large", large)
    about = "10,000 documents of 128 pieces, encoded and trained on: peak resident memory"
    yield Row(about, "<= 1.5 GB", f"{resident / 1e6:.2f} GB", resident <= 1.5e6, told(FINETUNE, large))
    shutil.rmtree(cache, ignore_errors=True)


def cost(name: str, options: str) -> tuple[float, int]:
    """CPU seconds and peak resident kilobytes of this run, made anew."""
    shutil.rmtree(claim.RUNS / name, ignore_errors=True)
    words = [*command(FINETUNE, options).split()[1:], "--run_dir", str(claim.RUNS / name), *claim.QUIET]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "-m", "lightning_maxmargin", *words], cwd=claim.ROOT, env=env,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"maxmargin {' '.join(words)} ended with status {child.returncode}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss


def planted_claims() -> Iterator[Row]:
    for tokens in (8, 16):
        config = "text/planted_sentences"
        found = [fit(f"planted-{tokens}-{s}", config, f"--data.T {tokens} --data.seed {s}") for s in range(5)]
        for key, limit in (("test/selection/accuracy", 0.88), ("test/accuracy", 0.74)):
            values = numbers(found, key)
            name = f"planted sentences, T={tokens}: median {'selection' if 'selection' in key else 'accuracy'}"
            measured = f"{median(values):.3f} ({' '.join(f'{x:.3f}' for x in values)})"
            shown_command = told(config, f"--data.T {tokens} --data.seed 0|1|2|3|4")
            yield Row(name, f">= {limit:.3f}", measured, median(values) >= limit, shown_command)


FORMS = {
    "p": "",
    "W, query of the text": "--model.parametrization W --model.query cls",
    "K Q' of rank 8": "--model.parametrization KQ --model.query cls --model.rank 8",
    "K Q' of rank 32": "--model.parametrization KQ --model.query cls --model.rank 32",
}


def form_rows() -> Iterator[Row]:
    """A table, asked for nothing: accuracy, AUPRC and seconds of training."""
    sets = {"counterfactual": of_files("counterfactual"), "sentences": "--data.train rotten-tomatoes"}
    for form, more in FORMS.items():
        for name, options in sets.items():
            arguments = f"{options} {more}".strip()
            found = seeded(f"{name}-{form.replace(' ', '-')}" if more else name, arguments)
            measured = f"accuracy {mean(numbers(found, 'test/accuracy')):.3f}"
            if name == "counterfactual":
                measured += f", AUPRC {mean(numbers(found, 'rationale/auprc')):.3f}"
            spent = [summary(run)["seconds"] - summary(run)["monitor/final_seconds"] for run in found]
            measured += f", {mean(spent):.0f} s"
            yield Row(f"{form}, {name}", "told", measured, True, told(FINETUNE, f"{arguments} --seed_everything 0|1|2"))


PARTS: dict[str, tuple[Callable[[Path], None] | None, Callable[[], Iterator[Row]]]] = {
    "counterfactual": (counterfactual, counterfactual_claims),
    "distractor": (distracted, distractor_claims),
    "toxic": (toxic, toxic_claims),
    "questions": (questions, question_claims),
    "sentences": (None, sentence_claims),
    "planted": (None, planted_claims),
    "cost": (sized, cost_claims),
    "transfer": (counterfactual, transfer_claims),
    "tuned": (counterfactual, tuned_claims),
    "forms": (counterfactual, form_rows),
}


def main(data: str, out: str | None = None, only: str | None = None, runs: str | None = None) -> None:
    """Measures every claim.

    Args:
        data: the folder of the sets.
        out: a Markdown file for the table, besides the terminal.
        only: names of parts, with commas.
        runs: where runs are kept; one that is there is not run again.
    """
    if runs is not None:
        claim.RUNS = Path(runs).resolve()
        claim.RUNS.mkdir(parents=True, exist_ok=True)
    chosen = list(PARTS) if only is None else only.split(",")
    rows: list[Row] = []
    for name in track(chosen, description="claims"):
        prepare, claims = PARTS[name]
        if prepare is not None:
            prepare(Path(data))
        rows += claims()
    words = [f"--only {only}"] * (only is not None) + ["--out docs/claims.md"] * (out is not None)
    made_by = " ".join([".venv/bin/python scripts/text_claims.py --data DATA", *words])
    sys.exit(
        report(
            rows,
            out,
            "Text",
            made_by,
            ["Means of three seeds (of five the median), and each; files made by the script itself."],
        )
    )


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
