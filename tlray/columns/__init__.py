"""Columns that travel from a source into a table: their names, their types, and how values become of these types."""
