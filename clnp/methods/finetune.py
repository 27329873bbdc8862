"""No protection: the floor."""

from __future__ import annotations

from .method import Method


class Finetune(Method):
    """Trains the same weights on task after task and lets them forget."""

    name = "finetune"
