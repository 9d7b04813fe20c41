"""Building an index of a table, or bringing it to where the table is."""
