"""What both models share with transformers, and frozen networks of others."""
