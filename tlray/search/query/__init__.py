"""Queries: from an image, a row or a vector to the nearest rows."""
