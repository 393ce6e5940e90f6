"""Models that other projects have published: which there are, how they are fetched, brought in and written out."""
