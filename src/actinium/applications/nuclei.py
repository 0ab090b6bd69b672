"""Nuclear binding: the liquid-drop formulas and the terms they are made of, and tables of measured nuclei."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from actinium.core.errors import InputError

__all__ = ["bw2", "liquid_drop_terms", "nuclei_near_stability", "read_nuclei", "semf"]

Floats = NDArray[np.float64]
MAGIC = np.array([2, 8, 20, 28, 50, 82, 126, 184])
PAIRING = 11.18
# Coefficients in MeV by term.
SEMF = {"volume": 15.75, "surface": -17.8, "coulomb": -0.711, "asymmetry": -23.7, "pairing": 1.0}
BW2 = {
    "volume": 16.58,
    "surface": -26.95,
    "coulomb": -0.774,
    "asymmetry": -31.51,
    "exchange": 2.22,
    "wigner": -43.4,
    "strutinsky": 55.62,
    "curvature": 14.77,
    "pairing": 1.0,
}


def _numbers(z: ArrayLike, n: ArrayLike) -> tuple[Floats, Floats]:
    protons, neutrons = np.broadcast_arrays(np.asarray(z, dtype=np.float64), np.asarray(n, dtype=np.float64))
    if bool(((protons < 0) | (neutrons < 0) | (protons + neutrons <= 0)).any()):
        raise InputError("a nucleus has protons or neutrons: Z and N cannot be negative, nor both 0")
    return protons, neutrons


def _to_magic(x: Floats) -> Floats:
    """Distance to the nearest magic number."""
    return np.abs(x[..., None] - MAGIC).min(-1)


def liquid_drop_terms(z: ArrayLike, n: ArrayLike) -> dict[str, Floats]:
    """The terms of which binding energies are made, without their coefficients (pairing in MeV).

    Args:
        z, n: numbers of protons and neutrons, of shapes that broadcast.

    Returns:
        volume A, surface A^(2/3), coulomb Z(Z-1)/A^(1/3), asymmetry (N-Z)^2/A, pairing +-11.18 A^(-1/2) for even-even
        and odd-odd nuclei, shell P = v_p v_n / (v_p + v_n) with v the distance to the nearest magic number, curvature
        A^(1/3), exchange Z^(4/3)/A^(1/3), wigner |N-Z|/A and strutinsky (N-Z)^2/A^(4/3).

    Raises:
        InputError: a number is negative, or A is 0.

    Source: Kitouni et al., 2024, appendix on the physical terms; Kirson, 2008.
    """
    protons, neutrons = _numbers(z, n)
    a, excess = protons + neutrons, neutrons - protons
    even = (protons % 2 == 0).astype(float) + (neutrons % 2 == 0).astype(float)
    v_p, v_n = _to_magic(protons), _to_magic(neutrons)
    total = v_p + v_n
    return {
        "volume": a,
        "surface": a ** (2 / 3),
        "coulomb": protons * (protons - 1) / a ** (1 / 3),
        "asymmetry": excess**2 / a,
        "pairing": PAIRING * (even - 1) / np.sqrt(a),
        "shell": np.divide(v_p * v_n, total, out=np.zeros_like(total), where=total > 0),
        "curvature": a ** (1 / 3),
        "exchange": protons ** (4 / 3) / a ** (1 / 3),
        "wigner": np.abs(excess) / a,
        "strutinsky": excess**2 / a ** (4 / 3),
    }


def semf(z: ArrayLike, n: ArrayLike) -> Floats:
    """Binding energy per nucleon in keV by the semi-empirical mass formula, at least 0.

    Args:
        z, n: numbers of protons and neutrons.

    Raises:
        InputError: a number is negative, or A is 0.

    Source: Kitouni et al., 2024, equation 1 (coefficients in MeV: 15.75, 17.8, 0.711, 23.7, 11.18).
    """
    terms = liquid_drop_terms(z, n)
    energy = sum(value * terms[name] for name, value in SEMF.items())
    return np.maximum(np.asarray(energy), 0.0) / terms["volume"] * 1000


def bw2(z: ArrayLike, n: ArrayLike) -> Floats:
    """Binding energy per nucleon in keV by the extended formula BW2, with shell, exchange and curvature terms.

    Args:
        z, n: numbers of protons and neutrons.

    Raises:
        InputError: a number is negative, or A is 0.

    Source: Kitouni et al., 2024, appendix; Kirson, 2008.
    """
    terms = liquid_drop_terms(z, n)
    protons, _ = _numbers(z, n)
    # This formula repels every pair of protons, itself included.
    terms["coulomb"] = protons**2 / terms["curvature"]
    energy = sum(value * terms[name] for name, value in BW2.items()) - 1.9 * terms["shell"] + 0.14 * terms["shell"] ** 2
    return np.asarray(energy) / terms["volume"] * 1000


def nuclei_near_stability(low: int = 8, high: int = 160, width: float = 0.085) -> tuple[NDArray[np.int64], ...]:
    """Z and N of the nuclei around the valley of stability.

    Args:
        low, high: smallest and largest number of protons and of neutrons.
        width: most distance from the valley, in units of A.

    Returns:
        Z and N, (nucleus,) each. The valley is Z = A / (1.98 + 0.0155 A^(2/3)).

    Raises:
        InputError: the range is empty.
    """
    if not 0 < low < high or width <= 0:
        raise InputError(f"expected 0 < low < high and a positive width, not {low}, {high} and {width}")
    z, n = (g.ravel() for g in np.meshgrid(np.arange(low, high + 1), np.arange(low, high + 1), indexing="ij"))
    a = z + n
    near = np.abs(z - a / (1.98 + 0.0155 * a ** (2 / 3))) <= width / 2 * a
    return z[near], n[near]


def read_nuclei(path: str | Path, target: str = "binding") -> pd.DataFrame:
    """A table of measured ground states: the CSV that the IAEA's LiveChart gives for `ground_states`.

    Args:
        path: the file; columns z, n and the target are needed.
        target: column of numbers; rows without one are left out.

    Returns:
        Columns z, n (integers) and the target.

    Raises:
        InputError: the file is missing, lacks a column, or holds no row with a number.
    """
    if not Path(path).is_file():
        raise InputError(f"there is no file {str(path)!r}")
    try:
        table = pd.read_csv(path, low_memory=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a CSV file ({error})") from None
    table.columns = [str(c).strip().lower() for c in table.columns]
    missing = [c for c in ("z", "n", target) if c not in table.columns]
    if missing:
        raise InputError(f"{path}: no column {', '.join(missing)}; there are {', '.join(table.columns)}")
    table = table[["z", "n", target]].apply(pd.to_numeric, errors="coerce").dropna()
    if not len(table):
        raise InputError(f"{path}: no row has numbers for z, n and {target}")
    return table.astype({"z": int, "n": int}).reset_index(drop=True)
