"""The command line, `clnp run | report | verify | export`, and the folder that a run writes."""

from clnp.cli.arguments import parser
from clnp.cli.commands import main

__all__ = ["main", "parser"]
