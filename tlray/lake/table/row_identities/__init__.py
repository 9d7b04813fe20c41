"""Which rows a table has: the identity of each, sorted by name in bounded memory; what plans and differences are made of."""
