#!/usr/bin/env bash
# From nothing to a language model improved by PPO: makes its own environment, runs the sandbox
# `rlhf` recipe and says where the report is. Safe to run again: what is finished is not redone.
#
#   bash scripts/quickstart.sh                        # some minutes of training on 2 cores
#   bash scripts/quickstart.sh seed=1 output_dir=runs/seed1
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh

install
recipe=("$venv/bin/jaxrlhf" rlhf --config configs/tiny/rlhf.yaml "$@")
folder="$("${recipe[@]}" --print-config | sed -n "s/^output_dir: *//p" | tr -d "'\"")"
"${recipe[@]}" </dev/null

echo
echo "The report: $folder/report/report.html (open it in a browser; one file, nothing else needed)"
