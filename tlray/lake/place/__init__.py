"""A place of a table, a model or an index: whose folder it is, who writes there now, and what names it."""
