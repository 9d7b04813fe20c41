"""`tlray train`: heads on a table, and partly frozen networks."""
