"""Reports: what is there or what a command did, as one HTML file that needs nothing else."""
