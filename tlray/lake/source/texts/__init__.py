"""Texts in a source: rows of tables that hold them, and the rule from bytes to text."""
