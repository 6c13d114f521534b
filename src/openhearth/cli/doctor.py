"""`hearth doctor`: this machine, what holds on it, what is missing and how to get it."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from openhearth import hardware
from openhearth.cli.guarantees import Guarantee, list_guarantees
from openhearth.cli.output import print_fields, print_json, print_table
from openhearth.config import Config
from openhearth.errors import HearthError
from openhearth.units import format_bytes

_LOWEST_TORCH = (2, 11)
_LITTLE_DISK_BYTES = 2 * 2**30
_NETWORK_TIMEOUT_S = 5.0


def command(
    json: bool = typer.Option(False, "--json", help="One JSON record on stdout."),
    measure: bool = typer.Option(True, "--measure/--no-measure",
                                 help="Measure memory bandwidth and matrix rate (a few seconds)."),
    network: bool = typer.Option(False, "--network", help="Also try to reach the hub."),
) -> None:
    """Show this machine, the guarantees that hold on it, and what is missing."""
    record = examine(Config.from_env(), does_measure=measure, does_reach=network)
    if json:
        print_json(record)
    else:
        _print_report(record)


def examine(config: Config, *, does_measure: bool, does_reach: bool) -> dict[str, Any]:
    """Return the JSON record. Never raises for something that is missing: it lists it."""
    cpu, memory = hardware.read_cpu(), hardware.read_memory()
    reach = _reach(config) if does_reach else {"checked": False}
    store = _read_store(config)
    record = {
        "cpu": {"model": cpu.model, "architecture": cpu.architecture, "features": list(cpu.feature_names),
                "processors": cpu.num_logical, "usable_cores": cpu.num_usable,
                "caches": [asdict(cache) for cache in cpu.caches],
                "has_fast_bfloat16": hardware.has_fast_bfloat16(cpu)},
        "memory": asdict(memory),
        "kernels": _kernels(config),
        "store": store,
        "measured": _measure() if does_measure else None,
        "guarantees": [asdict(guarantee) for guarantee in _guarantees(config)],
        "settings": {"home": str(config.home), "is_offline": config.is_offline,
                     "hf_endpoint": _without_password(config.hf_endpoint),
                     "hf_token": "set" if config.hf_token else "not set", "hf_cache": str(config.hf_cache)},
        "network": reach,
        "versions": _versions(),
    }
    record["missing"] = _list_missing(config, record)
    return record


def _without_password(address: str) -> str:
    """Return an address without the user and password it may carry."""
    scheme, _, rest = address.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def _versions() -> dict[str, str]:
    from openhearth.cli.versions import read_versions

    return read_versions()


def _kernels(config: Config) -> dict[str, Any]:
    from openhearth.kernels import select

    return asdict(select.choose(config.isa))


def _guarantees(config: Config) -> list[Guarantee]:
    from openhearth.kernels import select

    return list_guarantees(select.choose(config.isa))


def _measure() -> dict[str, Any]:
    import torch

    from openhearth import bench

    torch.set_num_threads(hardware.usable_cores())
    matmul = {name: bench.measure_matmul(getattr(torch, name), num_rounds=3).median
              for name in ("float32", "bfloat16")}
    return {"threads": torch.get_num_threads(),
            "bandwidth_bytes_per_s": bench.measure_bandwidth(num_rounds=3).median,
            "matmul_flops_per_s": matmul}


def _read_store(config: Config) -> dict[str, Any]:
    from openhearth import hub

    folder = config.home
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    disk = shutil.disk_usage(folder)
    record: dict[str, Any] = {
        "home": str(config.home), "is_writable": os.access(folder, os.W_OK), "disk_free_bytes": disk.free,
        "disk_total_bytes": disk.total, "models": [], "unfinished": [], "default_model": hub.DEFAULT_MODEL,
        "has_default_model": False, "errors": []}
    store = hub.Store(config.home)
    try:
        record["models"] = sorted(store.names())
        record["unfinished"] = [asdict(leftover) for leftover in hub.leftovers(store)]
        record["has_default_model"] = hub.find(hub.DEFAULT_MODEL, config) is not None
    except HearthError as error:
        record["errors"].append({"what": error.what, "hint": error.hint or "hearth list"})
    return record


def _reach(config: Config) -> dict[str, Any]:
    """Ask the hub's endpoint for its first page; any answer counts, nothing is sent but the request."""
    if config.is_offline:
        return {"checked": False, "reason": "HEARTH_OFFLINE is set"}
    import urllib3

    timeout = urllib3.Timeout(total=_NETWORK_TIMEOUT_S)
    try:
        with urllib3.PoolManager(timeout=timeout, retries=False) as pool:
            response = pool.request("HEAD", config.hf_endpoint, redirect=False)
    except urllib3.exceptions.HTTPError as error:
        return {"checked": True, "is_reachable": False, "reason": str(error)}
    return {"checked": True, "is_reachable": True, "status": response.status}


def _list_missing(config: Config, record: dict[str, Any]) -> list[dict[str, str]]:
    """What is not there, why it matters, and how to get it."""
    store, found = record["store"], []

    def miss(what: str, how: str) -> None:
        found.append({"what": what, "how": how})

    if record["kernels"]["message"]:
        miss(f"native CPU kernels: {record['kernels']['message']}",
             "install with a C++ compiler on a CPU with AVX2")
    torch_version = record["versions"]["torch"]
    numbers = tuple(int(part) for part in torch_version.split("+")[0].split(".")[:2] if part.isdigit())
    if numbers < _LOWEST_TORCH:
        miss(f"torch {torch_version} is older than 2.11", 'pip install "torch>=2.11"')
    if not record["cpu"]["has_fast_bfloat16"]:
        miss("bfloat16 in this CPU: float32 is used, with twice the memory", "a CPU with AVX-512 BF16 or AMX")
    if not config.hf_token:
        miss("a hub token: gated and private repositories are refused",
             "export HF_TOKEN=hf_..., made on the account page of the hub")
    if not store["has_default_model"]:
        miss(f"the default model `{store['default_model']}` is not on disk",
             f"hearth pull {store['default_model']}")
    if not store["is_writable"]:
        miss(f"`{store['home']}` cannot be written", "export HEARTH_HOME=/a/folder/of/yours")
    if store["disk_free_bytes"] < _LITTLE_DISK_BYTES:
        miss(f"only {format_bytes(store['disk_free_bytes'])} of disk are free", "hearth rm NAME")
    for part in store["unfinished"]:
        miss(f"`{part['name']}` is unfinished at {format_bytes(part['done_bytes'])}",
             f"hearth pull {part['name']} goes on, hearth rm --partials removes it")
    for error in store["errors"]:
        miss(error["what"], error["hint"])
    if record["network"].get("is_reachable") is False:
        miss(f"`{record['settings']['hf_endpoint']}` is not reachable: {record['network']['reason']}",
             "export HF_ENDPOINT=https://a.mirror; the default model also comes from the package index")
    return found


def _print_report(record: dict[str, Any]) -> None:
    cpu, memory, store, settings = (record[name] for name in ("cpu", "memory", "store", "settings"))
    limit = f", limited to {format_bytes(memory['limit_bytes'])}" if memory["limit_bytes"] else ""
    caches = ", ".join(f"L{cache['level']} {cache['kind'].lower()} {format_bytes(cache['num_bytes'])}"
                       for cache in cpu["caches"])
    fields = {
        "cpu": f"{cpu['model']} ({cpu['architecture']})",
        "features": ", ".join(cpu["features"]) or "none that are used",
        "cores": f"{cpu['usable_cores']} usable of {cpu['processors']}",
        "caches": caches,
        "memory": f"{format_bytes(memory['available_bytes'])} free of "
                  f"{format_bytes(memory['total_bytes'])}{limit}",
        "kernels": record["kernels"]["isa"] + (" (HEARTH_ISA)" if record["kernels"]["is_forced"] else ""),
        "disk": f"{format_bytes(store['disk_free_bytes'])} free of {format_bytes(store['disk_total_bytes'])}",
        "models": ", ".join(store["models"]) or "none in the store",
    }
    if record["measured"]:
        measured = record["measured"]
        fields["bandwidth"] = (f"{measured['bandwidth_bytes_per_s'] / 1e9:.1f} GB/s read "
                               f"with {measured['threads']} threads")
        fields["matmul"] = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s"
                                     for name, rate in measured["matmul_flops_per_s"].items())
    fields |= {
        "home": settings["home"], "offline": "yes (HEARTH_OFFLINE)" if settings["is_offline"] else "no",
        "endpoint": settings["hf_endpoint"] + _reach_text(record["network"]), "token": settings["hf_token"],
        "hf cache": settings["hf_cache"] + ("" if Path(settings["hf_cache"]).is_dir() else " (not there)"),
        "versions": ", ".join(f"{name} {value}" for name, value in record["versions"].items()),
    }
    print_fields(fields)
    print()
    print_table(["guarantee", "state", ""], [[f"{row['id']} {row['name']}", row["state"], row["detail"]]
                                             for row in record["guarantees"]])
    print()
    print_table(["missing", "how to get it"], [[row["what"], row["how"]] for row in record["missing"]])


def _reach_text(network: dict[str, Any]) -> str:
    if not network["checked"]:
        return ""
    return " (reachable)" if network["is_reachable"] else " (not reachable)"
