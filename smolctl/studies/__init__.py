"""Studies: plan their runs, find them, and run what is missing."""
