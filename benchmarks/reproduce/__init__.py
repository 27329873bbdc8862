"""The tables and figures of Golkar et al. 2019, and what decides how many channels they take; see
docs/reproducibility.md.
"""
