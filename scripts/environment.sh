#!/usr/bin/env bash
# Makes .venv beside this folder and installs the package into it: bash scripts/environment.sh EXTRAS (text, test, ...)
# The versions are those of scripts/constraints.txt. PYTHON names another interpreter (3.11 or newer).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extras="${1:-text}"

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "environment.sh: Python 3.11 or newer is needed; install it or name it with PYTHON=..." >&2
    exit 2
}

if [ ! -x .venv/bin/python ]; then
    python="$(find_python)"
    echo "Making .venv with $("$python" --version)"
    "$python" -m venv .venv
fi
# A stamp of what was asked for: a second call with the same files installs nothing and needs no network.
stamp=".venv/installed-$extras"
wanted="$(cat pyproject.toml scripts/constraints.txt | cksum)"
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    log=".venv/install.log"
    echo "Installing lightning-maxmargin[$extras] (a minute or two; what pip says is in $log)"
    .venv/bin/python -m pip install --disable-pip-version-check -c scripts/constraints.txt -e ".[$extras]" >"$log" 2>&1 &
    pip=$!
    while kill -0 "$pip" 2>/dev/null; do
        sleep 5
        echo "  $SECONDS s, $(grep -cE '^(Collecting|Processing|Requirement)' "$log" || true) packages"
    done
    if ! wait "$pip"; then
        tail -n 20 "$log" >&2
        echo "environment.sh: the installation failed; see the lines above and $log" >&2
        exit 1
    fi
    echo "$wanted" >"$stamp"
fi
# Where PYTHONDONTWRITEBYTECODE is set, every start would compile the package again: .2 to .3 s of each command.
.venv/bin/python -m compileall -q lightning_maxmargin
