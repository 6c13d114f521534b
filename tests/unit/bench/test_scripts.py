"""Every script in bench/ starts: its imports and its options are those of today's package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[3] / "bench"
SCRIPTS = [path for path in sorted(BENCH.glob("*.py")) if "ArgumentParser" in path.read_text("utf-8")]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_starts(script: Path) -> None:
    found = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, timeout=120,
                           check=False)
    assert found.returncode == 0, found.stderr
    assert "usage:" in found.stdout
