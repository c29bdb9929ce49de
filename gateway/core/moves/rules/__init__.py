"""Rules of moving, one file each, by name in `registry`."""
