"""`python scripts/train_rlhf.py --config x.yaml a.b=c`: the same as `jaxrlhf rlhf`."""

import sys

from jaxrlhf.cli import main

if __name__ == "__main__":
    sys.exit(main(["rlhf", *sys.argv[1:]]))
