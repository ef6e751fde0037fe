"""The paper as data: printed tables, claims, the rules that judge them, planted truth, verdicts."""
