"""Settings that recipes are made of, and the parser that reads them from YAML and options."""
