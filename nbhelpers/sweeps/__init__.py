"""Grids of runs: what to measure, measuring it run by run, and reading what is finished.

`grid` says which runs there are, `engine` does those that are not done, each checkpoint in a process of its
own (`run`), `rows` reads them beside the paper's tables, `figures` draws them, `estimate` says what they
take.
"""
