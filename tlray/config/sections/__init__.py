"""Sections that several commands share, and what every section is."""
