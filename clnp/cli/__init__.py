"""The command line, `clnp run | report | verify | export`, and the folder that a run writes."""

from clnp.cli.commands import main, parser

__all__ = ["main", "parser"]
