"""The network as torch runs it: folded, packed, at the precision of the recipe."""
