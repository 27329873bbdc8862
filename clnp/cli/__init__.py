"""The command line, `clnp run | report | verify | export`, and the folder that a run writes."""

from .arguments import parser
from .commands import main

__all__ = ["main", "parser"]
