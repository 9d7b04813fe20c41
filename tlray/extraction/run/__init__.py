"""One run: what it starts from, where it works, what it has done so far, and how it ends."""
