"""Tar and Parquet files that hold many images: their members, and the URIs of those."""
