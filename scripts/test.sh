#!/usr/bin/env bash
# The linter, then every test, in an environment of their own. Arguments go to pytest:
#
#   bash scripts/test.sh                    # everything but the comparisons with torch
#   bash scripts/test.sh tests/losses -x    # some of it
#   bash scripts/test.sh --parity           # those too: installs torch first
#
# Any build of torch will do, the comparisons run on the CPU; the one without CUDA is much smaller:
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu bash scripts/test.sh --parity
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh

extra=test
if [[ "${1:-}" == --parity ]]; then
    extra=parity
    shift
fi
install "$extra"
"$venv/bin/ruff" check .
# A file stays in one process, so that what it makes once is made once; in the order of conftest.py.
"$venv/bin/python" -m pytest -q -n auto --dist loadfile --no-loadscope-reorder "$@" </dev/null
