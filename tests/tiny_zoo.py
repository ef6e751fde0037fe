"""Measurements of the zoo small enough for the held-out chapters of one book."""

SMALL = {"N_SEQUENCES": 2, "N_VALIDATION": 6, "N_LONG": 2, "N_REPEATED": 2}
