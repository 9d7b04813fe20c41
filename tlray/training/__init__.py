"""Training: heads on the vectors of a table, or networks on images."""
