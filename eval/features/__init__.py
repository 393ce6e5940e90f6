"""Frozen networks that pictures are measured by, and what they see in sets of pictures."""
