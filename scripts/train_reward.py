"""`python scripts/train_reward.py --config x.yaml a.b=c`: the same as `jaxrlhf reward`."""

import sys

from jaxrlhf.cli import main

if __name__ == "__main__":
    sys.exit(main(["reward", *sys.argv[1:]]))
