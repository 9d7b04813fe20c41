"""What reports are made of: a page and its blocks, charts as SVG, and small pictures."""
