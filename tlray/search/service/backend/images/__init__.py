"""Images of requests and of rows: decoded within bounds, and made thumbnails of."""
