"""From a model and sequences to a table of head metrics, under a stated protocol: the pipeline, in one page.

text → sequences → capture → profiles → signals (protocol) → metrics (kernels) → HeadTable. :func:`observe`
runs the model and takes the time; :func:`measure` reads what was observed under any protocol.
"""

import dataclasses
import hashlib
import itertools
from dataclasses import dataclass
from functools import partial

import torch

from nbhelpers.arguments import RULES, checked, one_of, several
from nbhelpers.hooks.capture import capture
from nbhelpers.hooks.reductions import LocalMass, OfPrefix, RowMetrics, resolve
from nbhelpers.hooks.store import hashed_once
from nbhelpers.inputs.families import rotations_by_length
from nbhelpers.inputs.models import describe, unwrap
from nbhelpers.inputs.text import scaled_variant
from nbhelpers.kernels import rows
from nbhelpers.metrics import Signals, measure_signals
from nbhelpers.nulls.models import NULLS
from nbhelpers.profiles import Profiles
from nbhelpers.protocol import PAPER, SIGNALS
from nbhelpers.table import ESTIMATE, HeadTable

NULL_PROFILES = {null.function.__name__: null.function for null in NULLS if null.made_of == "profiles"}
PREFIX_TOLERANCE = 1e-4  # of attention over a prefix; float32 at another length is off by 1e-6 or so
BY_TOKEN = ("attention_mask", "position_ids", "token_type_ids")  # inputs of capture that are refused here


@checked
@dataclass(frozen=True)
class Observation:
    """What was seen of a model's attention: profiles of sequences and of their scaled variants x_α, by α.

    The profiles are key_profile, last_query, lag_profile, local_mass and, for the rules, stationary_profile;
    `scaled_variant` says how x_α (eq. 10) was drawn from x.
    """

    profiles: Profiles
    scaled: dict
    scaled_variant: str = PAPER.scaled_variant

    @checked
    def map(self, function):
        """Return the observation with `function`, Profiles to Profiles, applied to every part."""
        scaled = {factor: function(part) for factor, part in self.scaled.items()}
        return Observation(function(self.profiles), scaled, self.scaled_variant)


@checked(null=lambda n, v: several(one_of(*NULL_PROFILES))(n, (v,) if isinstance(v, str) else v))
def analyze(model, token_ids, protocol=PAPER, *, null=(), corpus=None, seed=0, **options):
    """Measure every head of a model on some sequences under a protocol; return a `HeadTable`.

    `model` is a LoadedModel or a transformers.PreTrainedModel, `token_ids` (sequence, position) are sequences
    of one length, without padding; :data:`nbhelpers.PAPER` is the literal reading of the paper. `null` names
    attention that learned nothing, one or several of :mod:`nbhelpers.nulls` such as "uniform" and "permuted",
    whose numbers stand beside the model's in `HeadTable.summary`; not with ``signal="rows"``, which leaves no
    profiles to make it of. `corpus` says in the provenance what the sequences are; `seed` draws random scaled
    variants and nulls. `options` are `batch_size`, `chunk`, `cache`, `fused`, `stream`, `beyond`, `progress`
    of :func:`nbhelpers.capture`.
    """
    _require_measurable(protocol)
    if protocol.signal == "rows":
        if null:
            raise ValueError("signal='rows' has no null, which is made of profiles; take another, or null=()")
        reductions = [RowMetrics(protocol), LocalMass((protocol.local_distance,))]
        options |= {"corpus": corpus, "seed": seed}
        profiles = _captured(model, torch.as_tensor(token_ids), reductions, **options)
        values = profiles.row_metrics.double().unbind(-1)
        measured = dict(zip(profiles.coordinates["row_metrics"], values, strict=True))
        measured[f"local_mass_{protocol.local_distance}"] = _local_mass(profiles, protocol)
        return _table(measured, profiles, protocol)
    seen = observe(model, token_ids, protocol, corpus=corpus, seed=seed, **options)
    table, beside = measure(seen, protocol), {}
    for name in null:
        summary = measure(seen.map(partial(NULL_PROFILES[name], seed=seed)), protocol).summary()
        beside[name] = summary[ESTIMATE].T.to_dict("list")
    return table.with_provenance(nulls=beside) if beside else table


@checked(whole=RULES["profiles"])
def observe(model, token_ids, protocol=PAPER, *, corpus=None, seed=0, whole=None, **options):
    """Run a model over sequences and their scaled variants; return the :class:`Observation` to `measure`.

    Arguments are as in :func:`analyze`; with ``cache=`` the same call finds the profiles again. One
    observation serves every protocol with the same `factors`, `scaled_variant` and `local_distance` whose
    signal is a key profile, a last query or a lag profile. With `whole`, the Profiles of the sequences from
    another observation, only variants are run.
    """
    token_ids = torch.as_tensor(token_ids)
    kept = [*SIGNALS, "stationary_profile", LocalMass((protocol.local_distance,))]
    options |= {"corpus": corpus, "seed": seed}
    how, profiles, scaled = protocol.scaled_variant, whole, None
    with hashed_once():
        variants = {a: scaled_variant(token_ids, a, how=how, seed=seed) for a in protocol.factors}
        if whole is None and how == "prefix" and variants and _knows_prefixes(model, token_ids):
            profiles, scaled = _with_prefixes(model, token_ids, variants, kept, **options)
        if scaled is None:
            scaled = {a: _captured(model, ids, kept, **options) for a, ids in variants.items()}
        if profiles is None:
            profiles = _captured(model, token_ids, kept, **options)
    rotations = {str(factor): part.provenance.get("rotations") for factor, part in scaled.items()}
    if any(rotations.values()):  # they depend on the length of each variant
        profiles = profiles.with_provenance(scaled_rotations=rotations)
    return Observation(profiles, scaled, how)


def _knows_prefixes(model, token_ids):
    """Whether attention over texts may hold that over their prefixes, and it can be checked."""
    network = unwrap(model)
    if len(token_ids) == 1 or network.dtype not in (torch.float32, torch.float64):  # one text is run alone
        return False
    alike = not rotations_by_length(network.config.get_text_config(), token_ids.shape[-1])
    return alike and describe(model).causal and not network.config.is_encoder_decoder


def _with_prefixes(model, token_ids, variants, kept, **options):
    """Return profiles of sequences and, by factor, of prefixes, in one pass; None where one alone differs."""
    kept = resolve(kept)
    prefixes = {a: [OfPrefix(reduction, ids.shape[-1]) for reduction in kept] for a, ids in variants.items()}
    seen = _captured(model, token_ids, [*kept, *itertools.chain(*prefixes.values())], **options)
    whole, scaled = part_of(seen, kept, kept, token_ids), {}
    for a, ids in variants.items():
        scaled[a] = part_of(seen, kept, prefixes[a], ids)
        alone = _captured(model, ids[:1], kept, **options | {"progress": False})
        apart = [(alone[r.name] - scaled[a][r.name][:1]).abs().max() for r in kept]
        if not max(apart) <= PREFIX_TOLERANCE:
            return whole, None
    return whole, scaled


def part_of(profiles, kept, captured, ids):
    """Return the profiles of some of the reductions, under the names of `kept`."""
    names = {own.name: made.name for own, made in zip(kept, captured, strict=True)}
    by_name = {of: getattr(profiles, of) for of in ("arrays", "axes", "coordinates")}
    fields = {of: {own: held[made] for own, made in names.items()} for of, held in by_name.items()}
    n, reductions = ids.shape[-1], profiles.provenance["reductions"][: len(kept)]
    part = dataclasses.replace(profiles, n_real=torch.full_like(profiles.n_real, n), **fields)
    return part.with_provenance(length=n, tokens=_digest(ids), reductions=reductions)


def measure(observation, protocol=PAPER):
    """Measure an observation, or a null of it, under a protocol, without the model; return a `HeadTable`."""
    return _table(measure_signals(signals_of(observation, protocol)), observation.profiles, protocol)


@checked
def signals_of(observation, protocol=PAPER):
    """Return the :class:`Signals` that :func:`measure` computes its metrics from."""
    _require_measurable(protocol)
    if protocol.signal == "rows":
        rows_need = "signal='rows', measured while attention streams by, call analyze(model, ids, protocol)"
        raise ValueError(f"An observation holds {', '.join(SIGNALS)}; for {rows_need}.")
    missing, drawn = set(protocol.factors) - observation.scaled.keys(), observation.scaled_variant
    if missing or (protocol.factors and protocol.scaled_variant != drawn):
        asked = f"The protocol compares with {protocol.scaled_variant} variants at {list(protocol.factors)}"
        seen = f"observed were {drawn} variants at {list(observation.scaled)}"
        raise ValueError(f"{asked}; {seen}. Call observe with this protocol.")
    if (asked := protocol.local_distance) not in (there := observation.profiles.coordinates["local_mass"]):
        told = f"local_distance={asked} was not observed, only {there}"
        raise ValueError(f"{told}; call observe with this protocol.")
    profiles, drops_sink = observation.profiles, protocol.sink != "keep"
    prepare = _averages if protocol.order == "mean then metric" else torch.Tensor.double

    def signal(part):
        profile = part[protocol.signal].double()
        return prepare(rows.drop_sink(profile) if drops_sink else profile)

    scaled = {factor: signal(observation.scaled[factor]) for factor in protocol.factors}
    origin = 0 if drops_sink else profiles.coordinates[protocol.signal].index(0)
    local_mass = {protocol.local_distance: prepare(_local_mass(profiles, protocol))}
    return Signals(signal(profiles), scaled, protocol, origin, local_mass)


def _captured(model, token_ids, reductions, *, corpus, seed, **options):
    if given := [n for n in BY_TOKEN if options.get(n) is not None]:  # scaled variants are other texts
        raise ValueError(f"Sequences must have one length, without {', '.join(given)}; call once per length.")
    profiles = capture(model, token_ids, reductions, **options)
    return profiles.with_provenance(corpus=corpus, seed=seed, tokens=_digest(token_ids))


def _digest(token_ids):
    """Return what pairs tables of one text."""
    return hashlib.sha256(token_ids.cpu().numpy().tobytes()).hexdigest()[:12]


def _local_mass(profiles, protocol):
    at = profiles.coordinates["local_mass"].index(protocol.local_distance)
    return profiles.local_mass[..., at].double()  # (sequence, layer, head)


def _table(measured, profiles, protocol):
    provenance = profiles.provenance | {"protocol": protocol.to_dict(), "protocol_hash": protocol.hash}
    averaged = protocol.order == "mean then metric"
    return HeadTable(measured, profiles.kv_groups, provenance, averaged, profiles.layers)


def _averages(per_sequence):
    """Return the mean over sequences and, after it, the means with one sequence left out each."""
    n, total = len(per_sequence), per_sequence.sum(0, keepdim=True)
    left_out = [(total - per_sequence) / (n - 1)] if n > 1 else []
    return torch.cat([total / n, *left_out])


def _require_measurable(protocol):
    if protocol.signal == "rows" and protocol.order == "mean then metric":
        others = f"order='metric then mean', or one of the signals {', '.join(SIGNALS)}"
        raise ValueError(f"signal='rows' goes row by row, never with order='mean then metric'; use {others}")
    if protocol.signal == "lag_profile" and protocol.sink != "keep":
        told = f"signal='lag_profile' has lags, not keys, so sink={protocol.sink!r} cannot drop key 0 from it"
        raise ValueError(f"{told}; use sink='keep', or another signal.")
