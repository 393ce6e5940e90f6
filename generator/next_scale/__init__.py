"""Next-scale generators: all codes of a scale in one pass, coarse to fine (Tian et al. 2024, VAR)."""
