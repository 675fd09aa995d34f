"""`python -m benchmarks.models`: the same as `biojax bench models`."""

import sys

from biojax.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "models", *sys.argv[1:]]))
