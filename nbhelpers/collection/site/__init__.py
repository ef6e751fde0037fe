"""The published site: executed notebooks, scorecard and reference as pages that need no network."""

from nbhelpers.collection.site.build import build_site

__all__ = ["build_site"]
