"""Bytes on disk: atomic writes, the checkpoint format, CSV text."""
