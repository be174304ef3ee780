#!/usr/bin/env bash
# The one check: lint, format, types. pre-commit runs exactly this; it changes no file.
# To repair what can be repaired: ruff check --fix . && ruff format .
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh

install dev
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
"$venv/bin/pyright" --pythonpath "$venv/bin/python"
