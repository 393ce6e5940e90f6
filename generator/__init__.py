"""Stage two: conditions to codes."""
