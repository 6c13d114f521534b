"""What recipes teach, for docs/results.md: `python bench/learning.py NAME RUN BEFORE AFTER`.

NAME is the row's (a recipe's file name); RUN a finished run of `hearth tune`; BEFORE and AFTER are folders of
`hearth eval` on the same problems, without and with what the run made. All receipts are copied to
`results/receipts/`, the numbers go to `results/learning.json`; `report.py` makes the page.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def read_row(name: str, run: dict[str, Any], before: dict[str, Any],
             after: dict[str, Any], note: str) -> dict[str, Any]:
    """Return a row. Raises: SystemExit where the receipts are not of one and the same work."""
    asked = [{key: receipt["settings"][key] for key in ("weights", "tasks", "split", "sampling", "seed")}
             for receipt in (before, after)]
    if asked[0] != asked[1]:
        raise SystemExit("the two evaluations asked different things")
    if before["settings"]["adapter"] is not None or after["settings"]["adapter"] is None:
        raise SystemExit("BEFORE has to be the model alone, AFTER the model with what the run made")
    if run["base"]["weights_sha256"] != asked[0]["weights"]:
        raise SystemExit("the run began with other weights")
    (task,) = asked[0]["tasks"]
    scores = [{key: receipt["results"][task["name"]][key] for key in ("accuracy", "low", "high")}
              for receipt in (before, after)]
    stages = run.get("stages", [run])
    return {"name": name, "method": run["method"], "task": task["name"], "source": task["source"],
            "num_problems": task["num_problems"], "before": scores[0], "after": scores[1],
            "seconds": run["measured"]["seconds"], "seed": stages[0].get("seed", run["settings"].get("seed")),
            "samples": sum(stage["result"].get("completions", 0) for stage in stages),
            "steps": run["num_steps"], "cpu": run["environment"]["cpu"], "isa": run["environment"]["isa"],
            "commit": run["code"]["commit"], "note": note}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("name")
    parser.add_argument("run", type=Path)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--note", default="", help="what a reader of the time should know")
    options = parser.parse_args()
    receipts = {kind: json.loads((getattr(options, kind) / "receipt.json").read_text(encoding="utf-8"))
                for kind in ("run", "before", "after")}
    row = read_row(options.name, receipts["run"], receipts["before"], receipts["after"], options.note)
    for kind, receipt in receipts.items():
        path = RESULTS / "receipts" / f"{options.name}-{kind}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")
    path = RESULTS / "learning.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    rows = sorted([*(one for one in rows if one["name"] != row["name"]), row], key=lambda one: one["name"])
    path.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
