"""Tables of README.md and docs/, from the files of benchmarks/results."""
