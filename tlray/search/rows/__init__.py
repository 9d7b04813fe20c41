"""The rows of an index: which image each one is, where its vector is in the table, and which of them a filter lets through."""
