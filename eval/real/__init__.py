"""The real pictures that samples are compared with: data sets and archives."""
