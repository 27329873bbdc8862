"""Benchmarks: each is a module with a command line, ``python -m benchmarks.step --help``."""
