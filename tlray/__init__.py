"""tlray: turn a lake of images into a table of embeddings that can be trusted, kept up to date and reused."""

__version__ = "0.1.0"
