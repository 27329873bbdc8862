"""`python -m clnp` is the command `clnp`."""

import sys

from .cli import main

sys.exit(main())
