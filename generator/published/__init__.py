"""Generators that other projects have published: their weights as ours, and ours as theirs."""
