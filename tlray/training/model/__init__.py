"""The trained model at rest, and what is made of it."""
