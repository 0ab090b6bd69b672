"""Makes the printed formulas of the catalogue importable from the tests of its functions."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
