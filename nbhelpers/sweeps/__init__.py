"""Grids of runs: many models, texts, lengths and protocols, on this machine or on a cluster."""
