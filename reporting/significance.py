"""Which scores differ significantly. Scores of the same seed are paired, because the same batches made them."""

import numpy as np
import pandas as pd
from scipy import stats

LEVEL = 0.05  # significance level of the intervals and, with Holm's correction, of a whole table


def paired(scores, reference):
    """Return each column minus the reference: a row of `mean`, `low`, `high`, `n`, `p` for each column.

    scores: a row per seed, a column per method, NaN if a run is missing; a pair needs both. low and high bound
    Student's t interval at confidence 95 %, p is that of the paired t test (1 if all differences are 0). With one pair
    low, high and p are NaN; with none there is no row. If all differences are the same number but 0, the interval has
    no width, the test means nothing, and p is NaN.
    """
    gaps = scores.sub(scores[reference], axis=0)
    rows = pd.DataFrame({"mean": gaps.mean(), "n": gaps.count()})
    rows = rows[rows["n"] > 0]
    gaps, largest = gaps[rows.index], scores.abs().max()
    noise = 1e-12 * (largest[rows.index] + largest[reference])  # rounding: equal differences may differ by so much
    same = (rows["n"] > 1) & (gaps.max() - gaps.min() <= noise)
    errors = gaps.sem().mask(same, 0.0)
    half = stats.t.ppf(1 - LEVEL / 2, rows["n"] - 1) * errors
    p = pd.Series(2 * stats.t.sf(rows["mean"].abs() / errors, rows["n"] - 1), rows.index)
    p = p.where((rows["n"] > 1) & ~same).mask(same & (rows["mean"].abs() <= noise), 1.0)
    return rows.assign(low=rows["mean"] - half, high=rows["mean"] + half, p=p)


def holm(p):
    """Return p values, a Series, corrected for their number: the chance of one false finding among all of them.

    S. Holm, A simple sequentially rejective multiple test procedure, 1979. NaN stays and is not counted.
    """
    known = p.dropna().sort_values()
    left = np.arange(len(known), 0, -1)  # Holm's factors: all tests for the smallest p, 1 for the largest
    return (known * left).cummax().clip(upper=1.0).reindex(p.index)


def leaders(scores):
    """Return the columns with the best mean or no significant difference from it, among those of two or more seeds."""
    scores = scores.loc[:, scores.count() > 1]
    if scores.empty:
        return set()
    best = scores.mean().idxmax()
    gaps = paired(scores, best).drop(index=best)
    gaps = gaps[gaps["n"] > 1]
    return {best, *gaps.index[(gaps["high"] >= 0) | gaps["p"].isna()]} if len(gaps) else set()


def cell(row, digits, sure):
    """Return '+1.2 [-0.3, +2.7] (3)' for a row of `paired`, with a star if the difference is significant."""
    sign = f"+.{digits}f"
    if row.n == 1:
        return f"{row.mean:{sign}} (n=1, no interval)"
    return f"{row.mean:{sign}}{'*' * sure} [{row.low:{sign}}, {row.high:{sign}}] ({row.n})"


def sentence(names, reference):
    """Return which differences to the reference are significant; names: {tested difference: whether it is}."""
    if not names:
        return f"Nothing can be said about differences to {reference}: they are of one seed, or the same in all seeds."
    sure = [name for name, is_sure in names.items() if is_sure]
    how = f"paired t tests, Holm's correction for the {len(names)} of this table, level 5 %"
    if not sure:
        return f"No difference to {reference} is significant ({how})."
    rest = " The others are not." if len(sure) < len(names) else ""
    return f"*: significantly different from {reference} ({how}): {', '.join(sure)}.{rest}"
