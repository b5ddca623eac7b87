"""Every plot and image grid of the project: one PNG each, complete or not at all, with the name of its data."""
