"""Evaluation: recipes and protocols, and what a result is compared with."""
