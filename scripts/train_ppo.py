"""`python scripts/train_ppo.py --config x.yaml a.b=c`: the same as `jaxrlhf ppo`."""

import sys

from jaxrlhf.cli import main

if __name__ == "__main__":
    sys.exit(main(["ppo", *sys.argv[1:]]))
