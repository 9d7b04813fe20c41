"""The encoder: a backbone made fast, with golden vectors that prove it computes what it should."""
