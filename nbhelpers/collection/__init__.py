"""The notebook collection: runner, results, scorecard, pages."""
