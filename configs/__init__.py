"""Recipes, a folder a data set."""
