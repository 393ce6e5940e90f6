"""The one training loop of both stages."""
