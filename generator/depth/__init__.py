"""Generators of several codebooks a position: a body over positions, a small head over depth (Lee et al. 2022)."""
