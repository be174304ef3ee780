"""How fast PPO is here: `python scripts/bench_ppo.py --hidden 256 --layers 4 --json-file a.json`.

The same as `jaxrlhf bench hidden=256 layers=4 json_file=a.json`: options are that recipe's fields.
"""

import sys

from jaxrlhf.cli import main


def overrides(words: list[str]) -> list[str]:
    """`--batch-size 8` and `--batch-size=8` as `batch_size=8`; the rest as it is.

    >>> overrides(["--batch-size", "8", "--lr=1e-4", "seed=1", "--help"])
    ['batch_size=8', 'lr=1e-4', 'seed=1', '--help']
    """
    found, left = [], list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and not equals and left and not left[0].startswith("--"):
            equals, value = "=", left.pop(0)
        found.append(f"{name.replace('-', '_')}={value}" if equals else word)
    return found


if __name__ == "__main__":
    sys.exit(main(["bench", *overrides(sys.argv[1:])]))
