"""One module for each image format: takes from a file what its pixels depend on, and leaves the rest behind."""
