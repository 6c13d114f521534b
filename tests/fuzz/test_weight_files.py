"""A short run of the fuzzer of models' files; `fuzz_weight_files.py` runs for as long as asked."""

import json
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
NUM_CASES = 3000


def test_damaged_weight_files_are_accepted_whole_or_refused_with_an_error_of_ours(tmp_path):
    program = [sys.executable, TESTS / "fuzz" / "fuzz_weight_files.py"]
    environment = {"PYTHONPATH": f"{TESTS.parent / 'src'}:{TESTS}", "TMPDIR": str(tmp_path),
                   "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([*program, "--cases", str(NUM_CASES), "--seconds", "300"], env=environment,
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert sum(outcomes.values()) == NUM_CASES
    assert outcomes.keys() == {"None", "BadFile", "Unsupported", "UnsafeFile"}
    assert outcomes["None"] > NUM_CASES / 20
