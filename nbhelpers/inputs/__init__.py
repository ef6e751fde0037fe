"""What is measured: models and texts, found by name in the package, in a folder or on the Hub."""
