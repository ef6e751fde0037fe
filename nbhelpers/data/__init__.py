"""Data that travels with the package: the paper's printed tables and a public-domain text."""
