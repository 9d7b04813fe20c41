"""Networks trained from images or cached activations."""
