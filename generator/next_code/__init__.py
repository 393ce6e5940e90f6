"""The generator of one code a position: its model, and the ways of sampling it."""
