"""Many streaming clients at one server: `python bench/load.py MODEL --clients 64 --minutes 10`.

Starts `hearth serve` in a process of its own, lets clients with mixed prompts ask for some minutes, some of
them leaving in the middle of an answer, and then looks at the idle server: pages, threads, files and memory
must be what they were, and nobody who stayed may have seen an error; exit code 1 otherwise. Reports tokens
per second, percentiles of the time to the first token, and what HTTP, templates and detokenising cost as a
share of the engine's processor time.

`--peer "llama-server -m FILE --port {port} ..."` compares with another server instead: in every round each of
the two answers the same clients for some seconds, in turn; rounds in which other programs took more than a
tenth of the cores are measured again. Both servers are started once and idle while the other is asked. Given
several times, each command answers alone for as long first, and the fastest one is compared.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).with_name("peers")))

from load_clients import Seen, Work, drive
from results import write_results
from rounds import Pairs, Round, alternate

from openhearth import hardware

_WARM = Work(clients=8, seconds=3.0, leaving=0.3, tokens=(4, 16))
_ALLOWED_BYTES = 48 << 20
"""Growth of a server's memory that is no leak: the heap's pieces, and tables that fill once."""
_IDLE_S = 30.0


class OurServer:
    """`load_server.py` in a process. Example: ``with OurServer(options) as ours: ...``."""

    name = "openhearth"

    def __init__(self, options: argparse.Namespace) -> None:
        settings = json.dumps({"model": options.model, "threads": options.threads,
                               "context": options.context, "weights": options.weights})
        script = Path(__file__).with_name("load_server.py")
        self.process = subprocess.Popen([sys.executable, script, settings], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        found = self._read()
        self.url, self.model, self.context = found["url"], found["model"], found["context"]
        self.weights = found["weights"]

    def state(self) -> dict[str, Any]:
        """Return what `load_server.state` says."""
        self.process.stdin.write("state\n")
        self.process.stdin.flush()
        return self._read()

    def idle_state(self) -> dict[str, Any]:
        """Return the state when nothing is open, or after half a minute."""
        deadline = time.monotonic() + _IDLE_S
        while True:
            found = self.state()
            if not (found["running"] or found["waiting"] or found["leases"]) or time.monotonic() > deadline:
                return found
            time.sleep(0.2)

    def __enter__(self) -> OurServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate(timeout=60)

    def _read(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the server ended with {self.process.wait()}")
        return json.loads(line)


class OtherServer:
    """Another server, by its command; `{port}` in it is replaced. It must speak OpenAI's dialect."""

    def __init__(self, command: str) -> None:
        self.command = command
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = [word.replace("{port}", str(port)) for word in shlex.split(command)]
        self.name, self.url = Path(words[0]).name, f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.model = self._wait()

    def _wait(self) -> str:
        for _ in range(600):
            if self.process.poll() is not None:
                raise SystemExit(f"{self.name} ended with {self.process.returncode}")
            try:
                with urllib.request.urlopen(f"{self.url}/v1/models", timeout=5) as reply:
                    return json.load(reply)["data"][0]["id"]
            except (OSError, ValueError):
                time.sleep(0.5)
        raise SystemExit(f"{self.name} was not ready after 5 minutes")

    def __enter__(self) -> OtherServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(60)


@dataclass
class Asked:
    """A server as `rounds.alternate` knows it, with all that clients saw of it."""

    server: OurServer | OtherServer
    seen: list[Seen] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.server.name

    def run(self, work: Work) -> tuple[float, float]:
        """Return tokens per second and the server's processor seconds."""
        before = processor_s(self.server.process.pid)
        self.seen.append(drive(self.server.url, self.server.model, work))
        return self.seen[-1].tokens_per_s, processor_s(self.server.process.pid) - before


def processor_s(pid: int) -> float:
    """Return the processor seconds of a process with all of its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def problems(before: dict[str, Any], after: dict[str, Any], seen: Seen) -> list[str]:
    """Return what an idle server has that it should not have, and what clients met. States as of `state`."""
    found = [f"{name} is {after[name]} when nothing is open" for name in
             ("pages_used", "pages_lost", "running", "waiting", "leases") if after[name]]
    found += [f"{name}: {before[name]} before, {after[name]} after" for name in ("threads", "files")
              if after[name] > before[name]]
    grown = after["resident_bytes"] - before["resident_bytes"]
    if grown > _ALLOWED_BYTES:
        found.append(f"memory grew by {grown / 2**20:.0f} MiB")
    if seen.failures:
        found.append(f"{len(seen.failures)} requests failed, the first with {seen.failures[0]}")
    return found


def soak(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Run the load against our server; returns the report and its problems."""
    work = Work(options.clients[0], options.minutes * 60, options.leaving, stop_token=options.stop_token,
                tokens=tuple(options.tokens), words=tuple(options.words))
    with OurServer(options) as ours:
        drive(ours.url, ours.model, replace(_WARM, clients=work.clients, words=work.words))
        before = ours.idle_state()
        seen = drive(ours.url, ours.model, work)
        after = ours.idle_state()
    engine_s, other_s = (after[name] - before[name] for name in ("engine_s", "other_s"))
    drawn, steps = (after[name] - before[name] for name in ("drawn_tokens", "steps"))
    found = problems(before, after, seen)
    return {"clients": work.clients, **seen.summary(), "drawn_tokens": drawn,
            "rows_per_step": round(drawn / max(1, steps), 1), "engine_cpu_s": round(engine_s, 1),
            "other_cpu_s": round(other_s, 1), "overhead_share": round(other_s / max(engine_s, 0.01), 4),
            "memory_grew_mib": round((after["resident_bytes"] - before["resident_bytes"]) / 2**20, 1),
            "problems": found}, found


def compare(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Run rounds against our server and another; returns the report and what clients met."""
    rows, failures = [], []
    with OurServer(options) as ours:
        for clients in options.clients:
            work = Work(clients, options.seconds, stop_token=options.stop_token, tokens=tuple(options.tokens),
                        words=tuple(options.words))
            rates = try_commands(options.peer, work)
            command = max(options.peer, key=lambda one: rates.get(one, 0.0))
            with OtherServer(command) as peer:
                asked = Asked(ours), Asked(peer)
                pairs = take_turns(*asked, work, options.rounds)
            failures += [failure for one in asked for seen in one.seen for failure in seen.failures]
            rows.append({"clients": clients, "ratio": round(pairs.ratio, 3),
                         "ratios": [round(ratio, 3) for ratio in pairs.ratios],
                         "foreign": [round(share, 3) for share in pairs.foreign],
                         "command": _shown(command),
                         "tried": {_shown(one): rate for one, rate in rates.items()},
                         "openhearth": _joined(asked[0].seen), "peer": _joined(asked[1].seen)})
    report = {"weights": ours.weights, "peer": peer.name, "seconds": options.seconds, "rows": rows}
    return report, failures[:1]


def take_turns(ours: Asked, peer: Asked, work: Work, num_rounds: int) -> Pairs:
    """Let both answer the same clients, others in every round; each is warm."""
    for one in (ours, peer):
        drive(one.server.url, one.server.model, replace(work, seconds=_WARM.seconds))
    seeds = itertools.count(1)

    def prepare() -> Round:
        fresh = replace(work, seed=next(seeds))
        return lambda server: server.run(fresh)

    return alternate(ours, peer, f"{work.clients} clients", prepare, num_rounds=num_rounds, on_round=note)


def try_commands(commands: list[str], work: Work) -> dict[str, float]:
    """Return command -> tokens per second of servers that answer alone; nothing of a single command."""
    rates: dict[str, float] = {}
    for command in commands if len(commands) > 1 else ():
        with OtherServer(command) as peer:
            drive(peer.url, peer.model, replace(work, seconds=_WARM.seconds))
            seen = drive(peer.url, peer.model, replace(work, seed=1))  # prompts that no cache has seen
        rates[command] = 0.0 if seen.failures else round(seen.tokens_per_s, 1)
        note(f"{work.clients} clients: {rates[command]} tokens/s of {_shown(command)}")
    return rates


def _shown(command: str) -> str:
    """Return a command without the folders of this machine."""
    return " ".join(Path(word).name if "/" in word else word for word in shlex.split(command))


def _joined(seen: list[Seen]) -> dict[str, Any]:
    """Return the median rate of rounds, and percentiles over all that they saw."""
    whole = Seen(first_s=[value for one in seen for value in one.first_s],
                 gaps_s=[value for one in seen for value in one.gaps_s], wall_s=1.0)
    record = {name: value for name, value in whole.summary().items() if name.endswith("_token_s")
              or name.endswith("_tokens_s")}
    return {"tokens_per_s": round(statistics.median(one.tokens_per_s for one in seen), 1), **record,
            "failures": sum(len(one.failures) for one in seen)}


def note(text: str) -> None:
    """Say how it goes on stderr."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="as for `hearth serve`")
    parser.add_argument("--clients", type=lambda text: [int(one) for one in text.split(",")], default=[64],
                        help="how many at a time; several numbers with --peer: 1,8,32,64")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--leaving", type=float, default=0.33, help="share of requests left half way")
    parser.add_argument("--tokens", type=int, nargs=2, default=(16, 128), help="least and most of an answer")
    parser.add_argument("--words", type=int, nargs=2, default=(4, 300), help="least and most of a prompt")
    parser.add_argument("--stop-token", type=int, help="id of the token that ends answers, to keep it away")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--context", type=int)
    parser.add_argument("--weights", default="auto", help="as for `hearth serve`")
    parser.add_argument("--peer", action="append", help="command of another server, with {port} in it")
    parser.add_argument("--rounds", type=int, default=5, help="with --peer")
    parser.add_argument("--seconds", type=float, default=20.0, help="of one round, with --peer")
    parser.add_argument("--out", type=Path, help="also write the report there")
    options = parser.parse_args()
    if len(options.clients) > 1 and options.peer is None:
        parser.error("several numbers of --clients are for --peer")
    report, found = soak(options) if options.peer is None else compare(options)
    cpu = hardware.read_cpu()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
                            check=False, cwd=Path(__file__).parent).stdout.strip()
    record = {"model": options.model, "commit": commit, "cpu": cpu.model, "cores": cpu.num_usable,
              "features": list(cpu.feature_names), "tokens": list(options.tokens),
              "words": list(options.words), **report}
    print(json.dumps(record, indent=1))
    if options.out is not None:
        write_results(options.out, record)
    for problem in found:
        note(f"problem: {problem}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
