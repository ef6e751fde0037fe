"""What makes a number mean something: the printed tables, and the statistics of its error."""
