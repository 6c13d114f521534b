"""`hearth serve`: one model for OpenAI's, Anthropic's and Ollama's clients."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from openhearth.cli.loading import LoadSettings, fetch_model, load_stored
from openhearth.cli.output import print_note
from openhearth.config import Config
from openhearth.errors import UsageError

if TYPE_CHECKING:
    from openhearth.hub import StoredModel
    from openhearth.local import LocalModel
    from openhearth.models.adapter_files import StoredAdapter

_ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,95}")


def command(
    model: str = typer.Argument(None, metavar="[MODEL]", show_default=False,
                                help="As for `hearth run`; the default model when left out."),
    host: str = typer.Option("127.0.0.1", "--host", help="Address to listen at; all but this machine's own "
                                                         "need --api-key-file."),
    port: int = typer.Option(8000, "--port", min=0, max=65535, help="0 takes a free one."),
    adapter: list[str] = typer.Option(None, "--adapter", metavar="NAME=RUN|PATH",
                                      help="An adapter that requests take by its name; may be repeated."),
    api_key_file: Path = typer.Option(None, "--api-key-file", metavar="FILE",
                                      help="Lines of NAME SHA256; requests then need a key."),
    name: str = typer.Option(None, "--name", help="What requests call the model. Default: its short name."),
    keep_responses: float = typer.Option(30.0, "--keep-responses", min=0, metavar="DAYS",
                                         help="Days that answers of /v1/responses are kept; 0 keeps none."),
    queue: int = typer.Option(256, "--queue", min=1, help="Answers that may wait; more are refused."),
    dtype: Literal["auto", "float32", "bfloat16"] = typer.Option("auto", "--dtype",
                                                             help="Numbers to compute in."),
    weights: Literal["auto", "float32", "bfloat16", "int8", "int4"] = typer.Option(
        "auto", "--weights", help="Form of the weights; auto keeps the file's, or what memory holds."),
    cache: Literal["auto", "float32", "bfloat16", "int8"] = typer.Option(
        "auto", "--cache", help="Type of kept keys and values."),
    context: int = typer.Option(None, "--context", help="Context length in tokens. Default: the model's."),
    threads: int = typer.Option(None, "--threads", min=1, help="CPU threads. Default: every usable core."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="No access log."),
) -> None:
    """Serve a model to OpenAI, Anthropic and Ollama clients."""
    from openhearth import server

    if api_key_file is None and not server.is_loopback(host):
        raise UsageError(f"--host is `{host}` and there are no keys",
                         why="everyone who reaches that address could use the model",
                         hint="--api-key-file FILE, or --host 127.0.0.1")
    keys = None if api_key_file is None else server.read_keys(api_key_file)
    config = Config.from_env()
    adapters = _read_adapters(adapter or [], config)
    bound = server.bind(host, port)  # before the model is loaded: a port in use is known at once
    stored = fetch_model(model, config, lambda: None)
    local = load_stored(stored, model, config, LoadSettings(dtype, weights, context, threads, cache))
    name = name or _short_name(stored)
    if name in adapters:
        raise UsageError(f"the model and an adapter are both named `{name}`", hint="--name, or another NAME=")
    _attach(local, adapters)
    served = server.Served(local, name, adapters=tuple(adapters), limits=server.Limits(max_waiting=queue))
    responses = server.ResponseStore(config.home / "responses.db", keep_days=keep_responses)
    app = server.build_app(served, keys=keys, config=config, responses=responses,
                           log=None if quiet else server.log_line)
    address = server.address_of(bound)

    def tell() -> None:
        print_note(f"serving {', '.join(served.names)} at {address} (context {local.engine.context_length} "
                   f"tokens, cache {local.engine.cache_tokens} tokens)")

    server.Server(app, on_ready=tell).run(sockets=[bound])


def _read_adapters(given: list[str], config: Config) -> dict[str, StoredAdapter]:
    """Return name -> adapter. Raises: UsageError, and as `read_adapter`."""
    from openhearth.models.adapter_files import read_adapter
    from openhearth.runs import find_output

    adapters: dict[str, StoredAdapter] = {}
    for one in given:
        name, equals, where = one.partition("=")
        if not equals or not where or not _ADAPTER_NAME.fullmatch(name) or name in adapters:
            raise UsageError(f"--adapter is `{one}`", why="expected a name of its own, and where it is",
                             hint="--adapter polite=runs/polite/output")
        adapters[name] = read_adapter(find_output(config.home, where))
    return adapters


def _attach(local: LocalModel, adapters: dict[str, StoredAdapter]) -> None:
    """Let requests take adapters by name. Raises: UsageError for one that does not fit the model."""
    for name, adapter in adapters.items():
        local.engine.attach(name, adapter.weights)
        trained_on = adapter.base_weights_sha256
        if trained_on and trained_on != local.stored.weights_sha256:
            print_note(f"adapter `{name}` was trained on other weights ({trained_on[:16]}) than "
                       f"`{local.stored.name}` ({local.stored.weights_sha256[:16]})")


def _short_name(stored: StoredModel) -> str:
    """Return what requests call a model: without the source, and of a path the last part."""
    if Path(stored.name).is_absolute():
        return Path(stored.name).name.removesuffix(".gguf")
    return stored.name.removeprefix("hub:")
