"""What this process has of its machine."""
