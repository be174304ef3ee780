"""Reward models beside TF-IDF and "shorter is better", on files of preference pairs.

    python scripts/compare_reward.py runs/hh_rlhf/reward --train A_train B_train \
        --test A_test B_test --out runs/hh_rlhf/compare

The n-th test file is also scored by a bag of words fitted to the n-th training file alone, and by
one fitted to all of them. Every test pair is scored, however long. Prints Markdown; writes it with
`comparison.json` and a calibration plot a test file. TF-IDF needs the extra `judges`.
"""

import argparse
import sys
from pathlib import Path

from jaxrlhf.errors import UserError
from jaxrlhf.recipes import compare


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", help="folders of finished reward stages")
    parser.add_argument("--train", nargs="+", required=True, help="pairs that TF-IDF is fitted to")
    parser.add_argument("--test", nargs="+", required=True, help="pairs to score, file by file")
    parser.add_argument("--inverse-penalty", type=float, default=0.3, help="C of TF-IDF's fit")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    args = parser.parse_args()
    try:
        print(
            compare.run(
                args.models,
                args.train,
                args.test,
                out=args.out,
                inverse_penalty=args.inverse_penalty,
            )
        )
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return problem.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
