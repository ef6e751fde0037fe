"""Pure functions from tensor to tensor: spectra, wavelets, entropies and position encodings.

Nothing here knows about models. Every function takes tensors or arrays, is batched over leading dimensions,
runs on the device of its input, computes in float32 or wider (half precision is upcast, float64 stays
float64), and leaves its input unchanged. NaN and infinity are refused; the search for them makes the host
wait for a CUDA device, and ``check=False`` skips it. Entropies are in nats, or in logarithms to a `base`.
"""
