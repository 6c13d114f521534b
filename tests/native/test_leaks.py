"""A thousand calls of every kernel, packing and training included, leave the heap as it was."""

import json
import subprocess
import sys
from pathlib import Path

NUM_CALLS = 1000
ALLOWED_BYTES = 16_000
"""Sixteen a call, the least that malloc gives; less is a cache of Python or torch that still fills."""


def test_a_thousand_calls_of_every_kernel_do_not_grow_the_process():
    done = subprocess.run([sys.executable, "-m", "support.leak_probe", str(NUM_CALLS)], capture_output=True,
                          text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    growth = json.loads(done.stdout)
    assert growth.pop("a leak on purpose") > ALLOWED_BYTES
    assert len(growth) > 1
    assert {name: num_bytes for name, num_bytes in growth.items() if num_bytes > ALLOWED_BYTES} == {}
