"""Figures that compare two sets of features."""
