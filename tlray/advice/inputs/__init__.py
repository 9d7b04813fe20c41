"""What advice begins with: a sample of labelled images, and the networks that are compared."""
