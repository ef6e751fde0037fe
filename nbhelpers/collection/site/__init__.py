"""The published site: executed notebooks, scorecard and reference as pages that need no network."""
