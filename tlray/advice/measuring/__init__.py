"""What is measured: accuracies, a race of candidates, trials, and what is shown beside them, within a budget of time."""
