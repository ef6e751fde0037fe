"""nbformat, imported without a grammar of web addresses that its checks of a schema read for seconds.

Take nbformat from here, before anything that imports it. The schema of notebooks has no address to check.
"""

import sys

_GRAMMAR = "rfc3987_syntax"  # jsonschema works without it
_hidden = sys.modules.setdefault(_GRAMMAR, None) is None
import nbformat  # noqa: E402, F401

if _hidden:
    del sys.modules[_GRAMMAR]
