"""The suites, to be run from a checkout: `python -m benchmarks.kernels --help`."""
