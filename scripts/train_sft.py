"""`python scripts/train_sft.py --config x.yaml a.b=c`: the same as `jaxrlhf sft`."""

import sys

from jaxrlhf.cli import main

if __name__ == "__main__":
    sys.exit(main(["sft", *sys.argv[1:]]))
