"""Modules with a frozen part and a free part."""

from .masked_linear import MaskedLinear

__all__ = ["MaskedLinear"]
