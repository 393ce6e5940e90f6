"""The atomic study: codebooks against features of a known distribution."""
