"""Captions: text encoders, and their features on disk and in memory."""
