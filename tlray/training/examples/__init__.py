"""Examples: rows with labels, their splits, losses and metrics."""
