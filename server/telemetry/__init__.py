"""What operators see of a process: how calls are correlated, metrics, and spans."""
