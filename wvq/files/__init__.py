"""Files and folders on disk: written whole, locked, named, read within bounds."""
