"""The map of a collection: rows in two dimensions."""
