"""`python -m jaxrlhf` is the `jaxrlhf` command."""

import sys

from jaxrlhf.cli import main

if __name__ == "__main__":
    sys.exit(main())
