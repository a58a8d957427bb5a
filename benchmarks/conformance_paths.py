"""Puts the package and the tests on the path: formulas, tiny models and endpoint are those of the tests."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
