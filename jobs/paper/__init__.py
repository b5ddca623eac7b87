"""The paper, experiment by experiment, and what it claims."""
