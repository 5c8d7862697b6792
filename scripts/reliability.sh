#!/usr/bin/env bash
# The reliability tests in their long form: scripts/reliability.sh [--only NAME ...] [--share .1] [--seed N] [--jobs 2] [--keep]
# Ends with a table of scenarios, cases, failures and silent failures; --keep writes it to docs/reliability.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/environment.sh text,test
export OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore
exec .venv/bin/python -m tests.reliability.long "$@"
