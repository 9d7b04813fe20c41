"""The network in training: where it is cut, how it learns, and what is averaged over steps and processes."""
