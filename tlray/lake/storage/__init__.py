"""Storage: URIs, and one store for each scheme with the same few methods."""
