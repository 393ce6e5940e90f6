"""Pictures and codes: where they come from, how they are read, cropped, split and cached."""
