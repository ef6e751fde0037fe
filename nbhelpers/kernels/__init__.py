"""Pure functions from tensor to tensor: spectra, wavelets, entropies and position encodings.

Nothing here knows about models. Every function takes a torch.Tensor or an array where a shape is given, is
batched over leading dimensions, runs on the device of its input, computes in float32 or wider (half precision
is upcast, float64 stays float64), leaves its input unchanged and returns a torch.Tensor. NaN and infinity are
refused; the search for them makes the host wait for a CUDA device, and ``check=False`` skips it. Entropies
are in nats, or in logarithms to a `base`. Equation numbers refer to Ruscio et al., arXiv:2410.18067.
"""
