"""Files and folders on disk: complete or absent, locked, named, read within bounds."""
