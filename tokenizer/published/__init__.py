"""Tokenizers of other projects: their sizes by the shapes of their weights, and these in both directions."""
