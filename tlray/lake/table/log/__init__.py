"""The log of a table: Delta, as delta-rs reads it and as tlray writes it."""
