"""What all kinds of generators are built of: configs, conditions, layers, and how a code is drawn."""
