"""`python -m clnp` is the command `clnp`."""

import sys

from clnp.cli import main

sys.exit(main())
