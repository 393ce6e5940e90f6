"""The samples that an evaluation draws: under which conditions, from which seeds, and how they are kept."""
