#!/usr/bin/env bash
# Builds the site into docs/_build/html, with no warning and no dead link. Examples in docstrings and Python blocks of pages
# are run by scripts/test.sh (pytest --doctest-modules, tests/docs); notebooks here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/environment.sh text,docs
export OMP_NUM_THREADS=1
site=docs/_build/html
.venv/bin/python -m sphinx -b html -d docs/_build/doctrees -W --keep-going -n -q docs "$site"
.venv/bin/python scripts/dead_links.py "$site"
echo "docs: $site/index.html"
