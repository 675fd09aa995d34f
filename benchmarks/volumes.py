"""`python -m benchmarks.volumes`: the same as `biojax bench volumes`."""

import sys

from biojax.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "volumes", *sys.argv[1:]]))
