"""CLNP inside other people's training loops; every module here needs a package of its own."""
