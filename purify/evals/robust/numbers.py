"""From records of rows to the numbers of results.json."""

from purify.evals.attacked.results import Done, comparisons, headlines, result_rows
from purify.evals.attacked.rows import without_exact


def numbers(done: Done, headline: str, *, seed: int) -> dict:
    """What results.json says of rows that are done; headline: the defence that the others are
    compared with."""
    clean = {row.defense_name: records for row, records in done if row.attack_name == "clean"}
    alone = {row.name for row in without_exact([row for row, _ in done])}
    entries = []
    for row, records in done:
        same = {record["index"]: record for record in clean.get(row.defense_name, [])}
        unattacked = [same[r["index"]] for r in records] if same else []
        exact_beside = row.name not in alone if "bpda" in row.gradients else None
        entries += result_rows(row, records, unattacked, seed=seed, exact_beside=exact_beside)
    return {
        "rows": entries,
        "headline": headlines(done),
        "comparisons": comparisons(headline, done, seed=seed),
    }
