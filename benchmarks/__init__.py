"""The benchmark suite: ``python -m benchmarks.run``; operators alone: ``pytest benchmarks``."""
