"""What follows from the measurements: a recommendation and how sure it is, and the commands that do it."""
