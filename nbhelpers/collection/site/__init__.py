"""The published site: executed notebooks, scorecard and reference as pages that need no network."""

from nbhelpers.collection.site.build import build_site
from nbhelpers.collection.site.pages import read_title

__all__ = ["build_site", "read_title"]
