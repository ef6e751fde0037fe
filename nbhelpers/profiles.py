"""What is captured: small per-head arrays with named axes, kept in safetensors."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch

from nbhelpers.arguments import RULES, checked, mapping, refuse, several, token_ids
from nbhelpers.files import read_tensors, reading, write_tensors
from nbhelpers.kernels.checks import as_real
from nbhelpers.kernels.entropy import require_distribution

FORMAT = "nbhelpers-profiles-2"
HEADER = ("axes", "coordinates", "kv_groups", "provenance", "layers")  # the fields that are no tensors


@checked(axes=mapping, coordinates=mapping, n_real=token_ids)
@dataclass(frozen=True)
class Profiles:
    """Per-head reductions of the attention of some sequences; not changed after they are made.

    `arrays` are tensors by name, on the CPU, float32 as captured and float64 of null models, with the axes
    (sequence, layer, head, *own axis*); a scalar profile has no own axis. Reach them as
    ``profiles["key_profile"]`` or ``profiles.key_profile``. `axes` are the names of the axes of each,
    `coordinates` what the positions of its own axis mean (keys and lags in tokens, freq in cycles/token,
    names). `n_real` (sequence,) counts the tokens that are not padding. `kv_groups` has the key-value group
    of each head: heads of one group share keys and are not independent. `layers` numbers the layer axis as
    the model does, where not every layer has attention; 0, 1, … if not given.

    `provenance` has model, revision, lengths, dtype, device, versions and what was asked for. Its `proof` is
    the largest difference between what captured attention makes of the model's values and what the model made
    of them, relative to the largest entry of a head's output, or says why there was nothing to compare.
    `fused` are the layers whose rows compiled loops measured, where these were to be used.
    """

    arrays: dict
    axes: dict
    coordinates: dict
    n_real: torch.Tensor
    kv_groups: list
    provenance: dict = field(default_factory=dict)
    layers: list = None

    def __post_init__(self):
        for name, array in self.arrays.items():
            axes = self.axes.get(name)
            if axes is None or array.ndim != len(axes):
                raise ValueError(f"{name} has shape {tuple(array.shape)} but axes {axes}.")
            if self.layers is None:
                object.__setattr__(self, "layers", list(range(array.shape[1])))
            if len(self.layers) != array.shape[1]:
                raise ValueError(f"{name} has {array.shape[1]} layers, numbered {self.layers}.")

    def __getitem__(self, name):
        if name not in self.arrays:
            raise KeyError(f"{name!r} was not captured; there is {', '.join(self.arrays)}.")
        return self.arrays[name]

    def __getattr__(self, name):
        arrays = self.__dict__.get("arrays", {})  # not there yet while a copy or a pickle is restored
        if name not in arrays:
            raise AttributeError(f"Profiles has no {name!r} (captured: {', '.join(arrays)}).")
        return arrays[name]

    def __contains__(self, name):
        return name in self.arrays

    def __repr__(self):
        shapes = ", ".join(f"{name} {tuple(a.shape)}" for name, a in self.arrays.items())
        return f"Profiles({shapes}; {self.nbytes / 1e6:.1f} MB)"

    @property
    def nbytes(self):
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    @property
    def n_sequences(self):
        """Number of sequences."""
        return len(self.n_real)

    def with_provenance(self, **facts):
        """Return the same profiles with facts added to their provenance."""
        return dataclasses.replace(self, provenance=self.provenance | facts)

    @classmethod
    @checked
    def from_attention(cls, attn, *, causal, kv_groups=None, provenance=None):
        """Reduce whole attention matrices (sequence, layer, head, query, key), where they fit into memory.

        They are after softmax, with as many keys as queries; float64 stays so, any other dtype becomes
        float32. If `causal`, query i sees the keys 0 to i only. Each head is a KV group of its own if
        `kv_groups` is None. The result has key_profile, last_query, lag_profile, stationary_profile, and
        local_mass at 0, the powers of two below n, and 16.
        """
        attn = attn.detach() if isinstance(attn, torch.Tensor) else as_real(attn, "attn")
        if attn.ndim != 5 or attn.shape[-1] != attn.shape[-2] or attn.numel() == 0:
            refuse("attn", attn, "of shape (sequence, layer, head, query, key) with as many keys as queries")
        require_distribution(attn)
        attn = attn if attn.dtype == torch.float64 else attn.float()
        if causal and bool((attn.triu(1) > 0).any()):
            raise ValueError("causal=True, but some queries attend to later keys; pass causal=False.")
        n = attn.shape[-1]
        lags = list(range(0 if causal else 1 - n, n))
        distances = sorted({0, 16, *(2**k for k in range(n.bit_length()) if 2**k < n)})
        # One sequence at a time: summing over diagonals takes a copy of twice the size.
        lag_profile = torch.stack([_mean_over_diagonals(one) for one in attn])[..., -len(lags) :]
        arrays = {
            "key_profile": attn.mean(-2),
            "last_query": attn[..., -1, :].clone(),
            "lag_profile": lag_profile,
            "stationary_profile": sum_over_second_half(attn, n, 0) / max(n // 2, 1),
            "local_mass": local_mass_of(lag_profile, lags, distances),
        }
        kv_groups = list(range(attn.shape[2])) if kv_groups is None else kv_groups
        return cls.of_length(n, arrays, lags, distances, kv_groups, provenance or {})

    @classmethod
    def of_length(cls, n, arrays, lags, distances, kv_groups, provenance):
        """Return profiles of n tokens, of the five kinds that whole attention is reduced to."""
        keys = "key", list(range(n))
        own = {"key_profile": keys, "last_query": keys, "lag_profile": ("lag", lags)}
        own |= {"stationary_profile": ("lag back", keys[1][: n // 2]), "local_mass": ("distance", distances)}
        axes = {name: ("sequence", "layer", "head", own[name][0]) for name in arrays}
        n_real = torch.full((len(arrays["key_profile"]),), n)
        return cls(arrays, axes, {name: own[name][1] for name in arrays}, n_real, kv_groups, provenance)

    @checked
    def save(self, path, *, label=""):
        """Write one safetensors file, whole or not at all, with a checksum and a `label` for :meth:`load`."""
        tensors = {name: array.contiguous() for name, array in self.arrays.items()} | {"n_real": self.n_real}
        header = {name: getattr(self, name) for name in HEADER} | {"format": FORMAT, "label": label}
        header = json.loads(json.dumps(header))  # as a file gives it back
        write_tensors(tensors, path, header | {"checksum": _checksum(header, tensors)})
        return Path(path)

    @classmethod
    @checked
    def load(cls, path, *, label=None):
        """Read what :meth:`save` wrote; a file that is damaged, of another kind or label is a ValueError."""
        with reading(path, "; delete it and capture again."):
            tensors, header = read_tensors(path)
        if header.get("format") != FORMAT:
            raise ValueError(f"{path} is not a {FORMAT} file (its format is {header.get('format')!r}).")
        if header.pop("checksum", None) != _checksum(header, tensors):
            raise ValueError(f"{path} is damaged (its checksum differs); delete it and capture again.")
        if label not in (None, header["label"]):
            raise ValueError(f"{path} holds {header['label'] or 'unnamed profiles'}, not {label}.")
        header["axes"] = {name: tuple(axes) for name, axes in header["axes"].items()}
        return cls(n_real=tensors.pop("n_real"), arrays=tensors, **{name: header[name] for name in HEADER})

    @classmethod
    @checked(parts=several(RULES["profiles"], least=1))
    def concatenate(cls, parts):
        """Join profiles of other sequences of one model, reductions and length; provenance is the first's."""
        first = parts[0]
        for part in parts[1:]:
            if differing := [name for name, value in _kind(first).items() if _kind(part)[name] != value]:
                raise ValueError(f"These profiles differ in {', '.join(differing)}: {first!r} and {part!r}.")
        facts = {"n_sequences": sum(part.n_sequences for part in parts)}
        if "proof" in first.provenance:
            proofs = [part.provenance["proof"] for part in parts]  # the largest, or the first that is none
            facts["proof"] = next((p for p in proofs if isinstance(p, str)), None) or max(proofs)
        arrays = {name: torch.cat([part[name] for part in parts]) for name in first.arrays}
        n_real, told = torch.cat([part.n_real for part in parts]), first.provenance
        told = told | facts if told else told
        return dataclasses.replace(first, arrays=arrays, n_real=n_real, provenance=told)


def _checksum(header, tensors):
    """Return a SHA-256 (hex) of a header of JSON types and of the bytes of tensors, with their names."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _kind(profiles):
    """Return what profiles of the same model and reductions have in common, by name."""
    shapes = {name: tuple(array.shape[1:]) for name, array in profiles.arrays.items()}
    own = {"axes": profiles.axes, "coordinates": profiles.coordinates, "KV groups": profiles.kv_groups}
    own["layers or heads"] = profiles.layers, shapes
    return own | {name: profiles.provenance.get(name) for name in ("model", "dtype", "stream", "reductions")}


def local_mass_of(lag_profile, lags, distances):
    """Return the attention at most `distances` tokens away, (..., distance), from that at each lag."""
    apart = torch.as_tensor(lags).abs()  # (lag,)
    return torch.stack([lag_profile[..., apart <= distance].sum(-1) for distance in distances], -1)


def sum_over_second_half(attn, n, start, weight=None):
    """Return the sum of attention at the lags 0 to n // 2 − 1 over the last n // 2 of n queries, (..., lag).

    `attn` (..., query, key) has the queries from `start` on; `weight` of them broadcasts to (..., query, 1).
    """
    n_lags, first = n // 2, max(n - n // 2 - start, 0)
    n_rows = attn.shape[-2] - first
    if n_rows <= 0 or n_lags == 0:
        return attn.new_zeros(*attn.shape[:-2], n_lags)
    # A row stride of one key more lines the diagonals up: column c is the lag n_lags − 1 − c.
    *outer, row, key = attn.stride()
    offset = attn.storage_offset() + first * row + (start + first - n_lags + 1) * key
    lined_up = attn.as_strided((*attn.shape[:-2], n_rows, n_lags), (*outer, row + key, key), offset)
    if weight is not None:
        lined_up = lined_up * weight[..., first:, :]
    return lined_up.sum(-2).flip(-1)


def _mean_over_diagonals(attn):
    """Return the mean over queries of attention at each lag from 1 − n to n − 1, (..., 2n − 1)."""
    n = attn.shape[-1]
    # With keys reversed and n zeros behind each row, rows read at a stride of 2n − 1 put lags in columns.
    padded = torch.nn.functional.pad(attn.flip(-1), (0, n)).flatten(-2)  # (..., query · 2n)
    return padded[..., : n * (2 * n - 1)].unflatten(-1, (n, 2 * n - 1)).sum(-2) / n
