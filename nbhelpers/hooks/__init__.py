"""The only code that touches transformers internals: loading, capturing, intervening."""
