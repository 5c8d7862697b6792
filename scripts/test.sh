#!/usr/bin/env bash
# Installs what the tests need and runs them: the fast ones, or with --all the slow ones too. Other words go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
select=(-m "not slow")
if [ "${1:-}" = "--all" ]; then
    select=()
    shift
fi
bash scripts/environment.sh text,test
# One thread each: on two cores a two-thread operation costs up to 60 times more when the other core is busy.
export OMP_NUM_THREADS=1
# By file: what the tests of a module share is made once.
exec .venv/bin/python -m pytest -n 2 --dist loadfile --doctest-modules lightning_maxmargin tests "${select[@]}" "$@"
