"""Grids of runs: which there are, what they take, doing those that are not done, reading and drawing them."""
