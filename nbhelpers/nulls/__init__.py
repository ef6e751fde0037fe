"""Attention that learned nothing: null models, surrogates, and the controls a model is shown beside."""
