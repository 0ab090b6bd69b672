"""Blends of other functions: weighted sums, compounds and mixtures."""

from __future__ import annotations

from functools import partial
from typing import Any

from actinium.functions.registry import row
from actinium.functions.units.basis_units import FourierUnit
from actinium.functions.units.blending_units import (
    COMBINED_POOL,
    CompoundUnit,
    KroneckerUnit,
    LinearCombination,
    RowdyUnit,
)
from actinium.functions.units.kernel_units import GaussianMixtureUnit

__all__ = ["FAMILY", "ROWS"]

FAMILY = "blending, basis expansion, splines, rational"

LEARNT: dict[str, Any] = {"kind": "trainable"}
ABU = partial(LinearCombination, bias=True)
LINCOMB = partial(LinearCombination, pool=COMBINED_POOL, start=1.0)
APAF = partial(LinearCombination, constraint="sum1", start=1.0)
GABU = partial(LinearCombination, constraint="sigmoid", start=0.0)

ROWS = (
    row(
        "ABU", r"\sum_j a_j g_j(x)+b", None, "Sütfeld 2020", module=ABU, aliases=("adaptive blending",), **LEARNT,
        note="Options: pool, constraint (none, sum1, abs, softmax, clip), bias.",
    ),
    row("LinComb", r"\sum_i w_i F_i(x)", None, "Pishchik 2023", module=LINCOMB, **LEARNT, note="Option: pool."),
    row(
        "NormLinComb", r"\frac{\sum_i w_i F_i(x)}{\lVert w\rVert}", None, "Pishchik 2023",
        module=partial(LINCOMB, constraint="norm"), **LEARNT, note="Option: pool.",
    ),
    row(
        "APAF", r"\frac{\sum_j a_j h_j(x)}{\sum_j a_j}", None, "survey", module=APAF, **LEARNT, confidence="b",
        note="Option: pool.",
    ),
    row(
        "GABU", r"\sum_j\sigma(a_j)g_j(x)", None, "survey", module=GABU, **LEARNT, confidence="b",
        note="Option: pool.",
    ),
    row(
        "DKNN", r"\sum_j a_j g_j(b_j x)", None, "Jagtap 2022", module=KroneckerUnit, **LEARNT, confidence="b",
        note="Option: pool.",
    ),
    row(
        "Rowdy", r"g_0(x)+\sum_{j\le n}a_j c\sin(jcx)", None, "Jagtap 2022", module=RowdyUnit, **LEARNT,
        note="Options: base, n, c, a, wave (sin or cos).",
    ),
    row(
        "MoGU", r"\sum_j a_j\,\mathcal N(x;\mu_j,s_j^2)", None, "survey", module=GaussianMixtureUnit, **LEARNT,
        confidence="b", note="Options: n, start. Starts near ReLU.",
    ),
    row(
        "Fourier series", r"a+\sum_{j\le r}b_j\cos(jdx)+c_j\sin(jdx)", None, "Liao 2020", module=FourierUnit, **LEARNT,
        aliases=("FSA",), confidence="b", note="Options: terms, frequency, start. Starts as the series of ReLU.",
    ),
    row(
        "TCA", r"\frac1k\sum_j f_j(e^{a_j}x+b_j)", None, "Baggenstoss 2022", module=CompoundUnit, **LEARNT,
        note="Option: pool.",
    ),
    row(
        "TCAv2", r"\frac{\sum_j e^{a_j}f_j(e^{b_j}x+c_j)}{\sum_j e^{a_j}}", None, "Baggenstoss 2023",
        module=partial(CompoundUnit, weighted=True), **LEARNT, note="Option: pool.",
    ),
)  # fmt: skip
