"""Sources: where images are listed and read from."""
