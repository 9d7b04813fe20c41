"""Search a table of embeddings: an index that stays true to its table, searches, duplicates, and a service with a page."""
