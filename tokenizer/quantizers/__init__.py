"""Quantizers: the interface, ten methods, product and multi-scale codes, and the distances they align by."""
