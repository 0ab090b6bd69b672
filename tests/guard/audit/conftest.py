"""Makes the tiny architectures importable from the tests of audits."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2])]
