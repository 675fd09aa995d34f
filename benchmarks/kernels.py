"""`python -m benchmarks.kernels`: the same as `biojax bench kernels`."""

import sys

from biojax.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "kernels", *sys.argv[1:]]))
