"""The table of embeddings: a Delta table of Parquet parts, and what keeps it right."""
