"""Pure functions from tensor to tensor: spectra, wavelets, entropies and position encodings.

Nothing here knows about models. Every function is batched over leading dimensions, runs on the device of
its input, computes in float32 or wider (half precision is upcast, float64 stays float64), and leaves its
input unchanged.
"""
