"""What can be told apart: scores of one seed are compared with each other, as the same batches made them."""

import numpy as np
import pandas as pd
from scipy import stats

LEVEL = 0.05  # of the intervals and, after Holm's correction, of a whole table


def paired(scores, reference):
    """Each column minus the reference: a row of `mean`, `low`, `high`, `n`, `p` for each, pandas.

    scores: a row for each seed, a column for each method, NaN where a run is missing. Seeds that both have are used.
    low and high bound the interval of Student's t at confidence 95 %; p is that of the paired t test (1 where all
    differences are 0). Of one pair low, high and p are NaN, of none there is no row. Where all differences are the same
    number but 0, the interval has no width and the test no meaning: p is NaN.
    """
    gaps = scores.sub(scores[reference], axis=0)
    rows = pd.DataFrame({"mean": gaps.mean(), "n": gaps.count()})
    rows = rows[rows["n"] > 0]
    gaps, largest = gaps[rows.index], scores.abs().max()
    noise = 1e-12 * (largest[rows.index] + largest[reference])  # by which equal differences may differ: their rounding
    same = (rows["n"] > 1) & (gaps.max() - gaps.min() <= noise)
    errors = gaps.sem().mask(same, 0.0)
    half = stats.t.ppf(1 - LEVEL / 2, rows["n"] - 1) * errors
    p = pd.Series(2 * stats.t.sf(rows["mean"].abs() / errors, rows["n"] - 1), rows.index)
    p = p.where((rows["n"] > 1) & ~same).mask(same & (rows["mean"].abs() <= noise), 1.0)
    return rows.assign(low=rows["mean"] - half, high=rows["mean"] + half, p=p)


def holm(p):
    """p values, a Series, corrected for their number: the chance of one false finding among all of them.

    S. Holm, A simple sequentially rejective multiple test procedure, 1979. NaN stays and is not counted.
    """
    known = p.dropna().sort_values()
    left = np.arange(len(known), 0, -1)  # the smallest is one of all, the largest stands alone
    return (known * left).cummax().clip(upper=1.0).reindex(p.index)


def leaders(scores):
    """Return the columns that have the best mean or cannot be told from the one that has, of two or more seeds."""
    scores = scores.loc[:, scores.count() > 1]
    if scores.empty:
        return set()
    best = scores.mean().idxmax()
    gaps = paired(scores, best).drop(index=best)
    gaps = gaps[gaps["n"] > 1]
    return {best, *gaps.index[(gaps["high"] >= 0) | gaps["p"].isna()]} if len(gaps) else set()


def cell(row, digits, sure):
    """'+1.2 [-0.3, +2.7] (3)' for a row of `paired`, with a star where it is sure."""
    sign = f"+.{digits}f"
    if row.n == 1:
        return f"{row.mean:{sign}} (n=1, no interval)"
    return f"{row.mean:{sign}}{'*' * sure} [{row.low:{sign}}, {row.high:{sign}}] ({row.n})"


def sentence(names, reference):
    """Return what a table of differences to the reference says; names: {what: whether it is sure}, of those tested."""
    if not names:
        return f"Nothing can be said about differences to {reference}: they are of one seed, or the same in all seeds."
    sure = [name for name, is_sure in names.items() if is_sure]
    how = f"paired t tests, Holm's correction for the {len(names)} of this table, level 5 %"
    if not sure:
        return f"None can be told from {reference} ({how})."
    rest = " No other can." if len(sure) < len(names) else ""
    return f"*: told from {reference} ({how}): {', '.join(sure)}.{rest}"
