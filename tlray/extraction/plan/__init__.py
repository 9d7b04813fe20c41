"""The plan of a run: what the table lacks, cut into units of work, made before any work is done."""
