"""`python -m profiler` is `edgeprof`."""

from profiler.cli import main

main()
