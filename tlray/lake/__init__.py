"""The lake: where images come from, how bytes become pixels, and the table of embeddings. Knows nothing of models."""
