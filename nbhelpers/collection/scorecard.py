"""The rules of the claims before they are applied, and the verdicts after: for one notebook, for all claims.

The scorecard reads the results store alone; the tables of a notebook take what it measured itself.
"""

import hashlib
import math
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pandas as pd
import scipy
from IPython.display import HTML, Markdown, display

from nbhelpers import stats
from nbhelpers.claims import paper, verdicts
from nbhelpers.claims.verdicts import NULL_NAMES, SECOND, UNLEARNED, Planted, claimed, deciding, judge
from nbhelpers.files import read_parquet_metadata
from nbhelpers.inputs.text import corpus_title
from nbhelpers.stats import Estimate

from .plan import list_notebooks
from .results import estimate_of, load_results

PLANTED = {name: f"planted_{name}_" for name in Planted._fields}  # + rule, as 04_planted_truth records them
SEEN, UNTAUGHT, FOUND, READINGS = ANSWERS = (
    "number seen here", "also where nothing was learned", "found where planted", "same in other readings",
)  # fmt: skip
BESIDE = ("by another quantity", "in the packaged models")
GROUPS = (
    "holds", "true of any signal", f"met by {UNLEARNED}", "met by its control",
    "changes with the reading or the first token", "not seen here", "the statistic measures something else",
    "open", "out of reach",
)  # fmt: skip
DECIDING = (
    "least", "most", "printed_low", "printed_high", "value", "low", "high", "null", "null_low", "null_high",
)  # fmt: skip
COLUMNS = ("claim", "title", "group", "verdict", "why", *ANSWERS, *BESIDE, *DECIDING)
LENGTH = 256  # tokens of a passage where no other length is told
BOS = {"add": "with BOS", "none": "without BOS"}
SIDE = {-1: "below", 0: "away from", 1: "above"}


def scorecard(folder):
    """Judge every claim by what the notebooks recorded in a folder of results, one row per claim, by group.

    Of :data:`COLUMNS`, why is a sentence with its numbers; four answers and what is to be seen :data:`BESIDE`
    follow, then the number that decides: its claimed range from least to most, what the paper prints, value
    and null with their intervals; NaN where nothing was measured.
    """
    numbers, planted = load_results(folder), planted_rates(folder)
    card = pd.DataFrame([_row(c, numbers, planted) for c in paper.CLAIMS], columns=COLUMNS)
    card[BESIDE[1]] = card.claim.map(packaged_verdicts(planted)["", "in words"]).fillna("")
    card = card.astype(dict.fromkeys(DECIDING, float))
    return card.sort_values("group", key=lambda g: g.map(GROUPS.index), kind="stable", ignore_index=True)


def in_short(card):
    """Return a scorecard in a paragraph: what holds, what needs no learning, the rest, the main surprise."""
    holding, met = ([*card.claim[card.group.isin(groups)]] for groups in (GROUPS[:1], GROUPS[1:3]))
    n_hold, n_met = len(holding), len(met)
    parts = [f"Of the paper's {len(card)} claims {n_hold or 'none'} hold{'s' if n_hold < 2 else ''} here"]
    parts[0] += f" ({', '.join(holding)})" * bool(holding)
    if met:
        parts.append(f"{n_met} {'is' if n_met == 1 else 'are'} explained by {UNLEARNED} ({', '.join(met)})")
    if rest := _listed(card, card.group[card.group.isin(GROUPS[3:])], "{} ({})"):
        parts.append(f"The others: {rest}")
    other = card[BESIDE[0]].str.partition(":")[0]
    if told := _listed(card, other[other != ""].sort_values(kind="stable"), "{} {}"):
        parts.append(f"By another quantity, which can tell: {told}")
    further = _outside(card, "value") - _outside(card, "null")
    further = further[card.verdict.isin(["contradicted", "explained by the null"])]
    if (further > 0).any():
        row = card.loc[further.idxmax()]
        closer = f"{UNLEARNED} comes closer to the claim than the model"
        parts += [f"Most surprising is {row.claim}, {row.title}: {closer}", row.why.removesuffix(".")]
    return ". ".join(parts) + "."


def _listed(card, kinds, form):
    """Return the claims of a card by kind, in the order of the kinds."""
    groups = kinds.groupby(kinds, sort=False)
    return "; ".join(form.format(kind, ", ".join(card.claim[own.index])) for kind, own in groups)


def _outside(card, of):
    """Return how far a number lies outside the claimed range, in widths of it."""
    width = (card.most - card.least).where(lambda width: width < math.inf, card.value.abs())
    return pd.concat([card.least - card[of], card[of] - card.most], axis=1).max(axis=1).clip(lower=0) / width


def scorecard_markdown(card, columns=()):
    """Return a scorecard as a table in Markdown: claim, verdict, the sentence that says why, more columns."""
    lines = [("claim", "verdict", "what was seen", *columns), ["---"] * (3 + len(columns))]
    for _, row in card.iterrows():
        lines.append((f"{row.claim} {row.title}", f"**{row.verdict}**", row.why, *row[list(columns)]))
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def criteria(folder):
    """Return every number of a rule that was measured: its claim, what it is, in a sentence, in numbers.

    `p` is `Criterion.p_value`, `adjusted_p` that of all as one family (Benjamini and Hochberg); NaN without
    an interval of known units. `stands while` tells how far an end of the claimed range could be another.
    """
    numbers, rows = load_results(folder), []
    for claim in paper.CLAIMS:
        for c, e in _measured((*claim.criteria, *claim.second), numbers):
            told = claim.number, c.statistic, verdicts.sentence(c, e), _stands(c, e)
            rows.append((*told, *_numbers(c, e), c.p_value(e), math.nan))
    columns = ["claim", "statistic", "sentence", "stands while", *DECIDING, "p", "adjusted_p"]
    frame = pd.DataFrame(rows, columns=columns)
    if (known := frame.p.notna()).any():
        frame.loc[known, "adjusted_p"] = scipy.stats.false_discovery_control(frame.p[known])
    return frame


def multiplicity(criteria):
    """Return in a sentence what it changes that all criteria of a card are tested as one family."""
    tested = criteria[criteria.p.notna()]
    alone, together = (tested[tested[column] < 0.05] for column in ("p", "adjusted_p"))
    lost = [f"{row.claim}, {row.statistic}" for row in alone.drop(together.index).itertuples()]
    return (
        f"Of {len(tested)} numbers {len(alone)} are decided at 5 % each on its own, {len(together)} as one "
        f"family (Benjamini and Hochberg); what that leaves open: {'; '.join(lost) or 'none'}."
    )


def planted_rates(folder):
    """Return how often each rule was right about planted cases: Planted by number of claim ("C5").

    The rule of a claim's second criteria is "C5_second". Empty where 04_planted_truth was not run.
    """
    try:
        numbers = load_results(folder).set_index("name")
    except FileNotFoundError:
        return {}
    first = PLANTED["sensitivity"]
    rules = [name.removeprefix(first) for name in numbers.index if name.startswith(first)]
    return {r: Planted(*(estimate_of(numbers.loc[of + r]) for of in PLANTED.values())) for r in rules}


def packaged_verdicts(planted=None):
    """Return the verdicts on the packaged models: a row per claim, a column per model and text, a sentence.

    They are judged anew from the estimates that the sweep "packaged-models" left in the package, `planted` as
    :func:`planted_rates` gives it; `attrs["rules"]` are the versions of the rules that these were made with.
    "C5_second" is C5 by another quantity. Columns are (model, text), in passages of :data:`LENGTH` tokens
    unless it says otherwise; ("", "in words") tells where the claim is supported and where verdicts differ.
    """
    columns, planted, rules = {}, planted or {}, set()
    claims = [c for claim in paper.CLAIMS for c in (claim, claim.other) if c and c.criteria]
    for file in sorted(Path(str(resources.files("nbhelpers.data"))).glob("sweeps/packaged-models/runs/*")):
        facts = read_parquet_metadata(file)
        run, records = facts["sweep"]["settings"], {n: Estimate(**e) for n, e in facts["records"].items()}
        rules.add(facts["rules"]["version"])
        told = [f"at {run['length']} tokens"] * (run["length"] != LENGTH)
        told += [words for bos, words in BOS.items() if bos == run["bos"]]
        columns[run["model"], " ".join([corpus_title(run["corpus"]), *told])] = {
            c.number: judge(c, records, planted=planted.get(c.number)).verdict
            for c in claims
            if all(criterion.name in records for criterion in c.criteria)
        }
    frame = pd.DataFrame(columns).sort_index(axis=1).fillna("not measured")
    frame = frame.loc[[c.number for c in claims if c.number in frame.index]]
    frame["", "in words"] = [_differ(verdicts) for _, verdicts in frame.iterrows()]
    frame.attrs["rules"] = sorted(rules)
    return frame


def _differ(verdicts):
    """Return in how many models a claim is supported on every text, and which verdicts stand where."""
    n_hold, models = 0, {}
    verdicts = verdicts[verdicts != "not measured"]
    for model, found in verdicts.groupby(level=0):
        texts = {verdict: of.index.get_level_values(1) for verdict, of in found.groupby(found)}
        usual = max(texts, key=lambda verdict: (len(texts[verdict]), verdict))
        n_hold += set(texts) == {"supported"}
        other = [f"{verdict} on {', '.join(texts[verdict])}" for verdict in texts if verdict != usual]
        models.setdefault(usual, []).append(model + f" ({'; '.join(other)})" * bool(other))
    told = "; ".join(f"{verdict} in {', '.join(names)}" for verdict, names in models.items())
    told = f"{verdicts.iloc[0]} in all" if verdicts.nunique() == 1 else told
    return f"holds on every text in {n_hold} of {len(verdicts.groupby(level=0))} models: {told}"


def missing_notebooks(card):
    """Return the notebooks of the collection that would measure what a scorecard misses, in order."""
    homes = {claim.number: claim.notebook for claim in paper.CLAIMS if claim.criteria}
    missing = {homes.get(number) for number in card.claim[card.verdict == "not measured"]}
    return sorted(missing & {path.stem for path in list_notebooks()})


def rules_version():
    """Return what identifies the verdict rules: a hash, and in a git checkout the last commit of them."""
    files = [*sorted(Path(paper.__file__).parent.glob("*.py")), Path(stats.__file__)]
    files += [paper.RULES, paper.RULES.parents[1] / "banks.yaml"]
    digest, commit = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12], ""
    if shutil.which("git"):
        asked = ["git", "log", "-1", "--format=%h of %cs", "--", *map(str, files)]
        answer = subprocess.run(asked, cwd=files[0].parent, capture_output=True, text=True, check=False)
        commit = answer.stdout.strip()
    return f"rules {digest}, " + (f"commit {commit}" if commit else "not a git checkout")


# Tables of one notebook


def rule_table(claims):
    """Return one row per criterion of some claims: what must be true of which statistic."""
    rows = []
    for claim in claims:
        for c in claim.criteria:
            null = f"{SIDE[c.away]} {c.null} by {c.margin:g}" if c.nulls else "–"
            rows.append((claim.number, c.statistic, claimed(c.claimed), null))
    return pd.DataFrame(rows, columns=["claim", "statistic", "the claim", "and it lies"])


def verdict_table(claim, records):
    """Return one row per criterion: what the paper prints, and what of `records`, by name, was measured."""
    rows = []
    for c in claim.criteria:
        printed = paper.printed_range(c)
        prints = "–" if printed is None else f"{printed[0]:.3g} to {printed[1]:.3g} (Table {c.printed[0]})"
        seen = verdicts.sentence(c, records[c.name]) if c.name in records else "not measured"
        rows.append({"statistic": c.statistic, "the paper prints": prints, "we see": seen})
    return pd.DataFrame(rows)


def verdict_line(claim, records, folder):
    """Return the verdict of a claim and what decided it, planted cases in the folder too, as Markdown."""
    verdict = judge(claim, records, planted=planted_rates(folder).get(claim.number))
    number = claim.number.removesuffix(SECOND)
    title = claim.title if claim.number == number else f"{claim.title}, by another quantity"
    return f"**{number}, {title}: {verdict.verdict}.** {verdict.reason}."


def conclude(store, numbers, records):
    """Show the verdicts of some claims; record the criteria that were measured, and the table "verdicts"."""
    claims, planted = [paper.claim(number) for number in numbers], planted_rates(store.folder)
    for claim in claims:
        display(Markdown(verdict_line(claim, records, store.folder)))
        for c in claim.criteria:
            if c.name in records:
                store.record(c.name, records[c.name], note=c.statistic)
    display(wrapped(pd.concat([verdict_table(claim, records) for claim in claims], ignore_index=True)))
    told = [(c.number, c.statement, *judge(c, records, planted=planted.get(c.number))) for c in claims]
    store.table("verdicts", pd.DataFrame(told, columns=["claim", "the paper says", "verdict", "why"]))


def conclude_second(store, number, profile, nulls):
    """Measure, record and judge the second criteria of a claim on stationary lag profiles beside nulls."""
    from nbhelpers.claims.lag_kernels import measure_second  # late: torch

    claim = paper.claim(number)
    records = measure_second(profile, claim, nulls=nulls)
    store.record_all(records)
    display(Markdown(verdict_line(claim.other, records, store.folder)))
    display(wrapped(verdict_table(claim.other, records)))


def wrapped(frame, fold=""):
    """Return a table without its index whose long cells wrap, folded under a line if one is given."""
    style = frame.style.hide(axis="index").set_properties(**{"text-align": "left", "white-space": "normal"})
    if fold:
        return HTML(f"<details><summary>{fold}</summary>{style.to_html()}</details>")
    return style.set_caption(f"printed in {paper.VERSION}") if "the paper prints" in frame else style


def _row(claim, numbers, planted):
    known, again = (_measured(criteria, numbers) for criteria in (claim.criteria, claim.second))
    records = {criterion.name: estimate for criterion, estimate in known}
    verdict, why = judge(claim, records, planted=planted.get(claim.number))
    row = {"claim": claim.number, "title": claim.title, "verdict": verdict, "why": why + "."}
    untaught, tried = _untaught(known), "not tried"
    if (other := _untaught(again)) != "no null":
        untaught += f"; by another quantity: {other}"
    if rates := planted.get(claim.number):
        told = "sensitivity {:.0%}, specificity {:.0%}".format(*(rate.value for rate in rates))
        tried = f"{'yes' if rates.usable else 'no'}: {told}"
    row |= {SEEN: _share([c.place(e) for c, e in known]), UNTAUGHT: untaught, FOUND: tried}
    row[READINGS] = _in_readings(claim, known, numbers)
    row |= {"group": _group(claim, verdict, row), BESIDE[0]: ""}
    if len(known) == len(claim.criteria) > 0:
        chosen = deciding(claim, records)[1]
        row |= dict(zip(DECIDING, _numbers(chosen, records[chosen.name]), strict=True))
    if claim.other and len(again) == len(claim.second):
        records = {criterion.name: estimate for criterion, estimate in again}
        other = judge(claim.other, records, planted=planted.get(claim.other.number))
        row[BESIDE[0]] = f"{other.verdict}: {other.reason}."
    return row


def _untaught(measured):
    """Return how many numbers attention that learned nothing has in their claimed range, in words."""
    nulls = [(c, estimate.null) for c, estimate in measured if estimate.null is not None]
    return _share([c.place(Estimate(n, n, n)) for c, n in nulls]) if nulls else "no null"


def _share(places):
    """Return how many of some numbers lie in their claimed range, in words."""
    inside = places.count("inside")
    if not places or (inside < len(places) and "outside" not in places):
        return "open" if places else "not measured"
    return {0: "no", len(places): "yes"}.get(inside, f"{inside} of {len(places)} numbers")


def _in_readings(claim, known, numbers):
    """Return in words whether each number stays on its side of the claimed range in every other reading."""
    values = numbers.drop_duplicates("name", keep=False).set_index("name").value
    meeting, alone = (values.get(f"{claim.number}_readings{which}") for which in ("", "_alone"))
    everywhere, n_read = "", 0
    if meeting is not None and alone is not None:
        everywhere = f"; of all readings {meeting:.0%} meet the claim, {alone:.0%} where {UNLEARNED} does not"
    for criterion, estimate in known:
        for words, value in ((words, values[name]) for words, name in criterion.readings if name in values):
            n_read += 1
            places = {criterion.place(other) for other in (estimate, Estimate(value, value, value))}
            if places == {"inside", "outside"}:
                return f"no: {words} gives {verdicts.number(criterion, value)}{everywhere}"
    return (f"yes, {n_read} of them" if n_read else "not tried") + everywhere


def _group(claim, verdict, answers):
    """Return the group of a claim, which follows from its verdict and its answers."""
    nulls = {null for criterion in claim.criteria for null in criterion.nulls}
    if verdict == "out of reach here":
        return "out of reach"
    if verdict in ("undecided", "not measured"):
        return "open"
    if "white noise" in nulls and answers[SEEN] == answers[UNTAUGHT] == "yes":
        return "true of any signal"
    if verdict == "the quantity cannot tell":
        return "the statistic measures something else"
    if verdict == "explained by the null":
        return f"met by {UNLEARNED}" if nulls & NULL_NAMES.keys() else "met by its control"
    if answers[READINGS].startswith("no:"):
        return "changes with the reading or the first token"
    return "holds" if verdict == "supported" else "not seen here"


def _stands(criterion, estimate):
    (least, most), (low, high) = criterion.claimed, (f"{end:.3g}" for end in estimate[1:3])
    place = criterion.place(estimate)
    if place == "open":
        return f"an end of the range lies between {low} and {high}"
    if place == "outside":
        return f"the range ends below {low}" if estimate.low > most else f"the range begins above {high}"
    begins, ends = [f"begins at most at {low}"], [f"ends at least at {high}"]
    ends = begins * math.isfinite(least) + ends * math.isfinite(most)
    return f"the range {' and '.join(ends)}"


def _measured(criteria, numbers):
    """Return the criteria that have a record, each with its Estimate; a number alone is its own interval."""
    rows = numbers[numbers.name.isin([criterion.name for criterion in criteria])].itertuples(index=False)
    known = {row.name: estimate_of(row) for row in rows}
    found = [(c, known[c.name]) for c in criteria if c.name in known]
    return [(c, e if math.isfinite(e.low) else e._replace(low=e.value, high=e.value)) for c, e in found]


def _numbers(criterion, estimate):
    """Return what :data:`DECIDING` names."""
    printed = paper.printed_range(criterion) or (math.nan, math.nan)
    return (*criterion.claimed, *printed, *estimate[:4], estimate.null_low, estimate.null_high)
