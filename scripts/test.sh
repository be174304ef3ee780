#!/usr/bin/env bash
# The linter, then every test, in an environment of their own. Arguments go to pytest:
#
#   bash scripts/test.sh                    # everything
#   bash scripts/test.sh tests/losses -x    # some of it
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh

install test
"$venv/bin/ruff" check .
# A file stays in one process, so that what it makes once is made once.
"$venv/bin/python" -m pytest -q -n auto --dist loadfile "$@" </dev/null
