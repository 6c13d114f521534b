"""A server on a real socket, in a thread of the test's process: torch is loaded once."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from openhearth import hub
from openhearth.config import Config
from openhearth.listening import address_of, bind
from openhearth.local import load
from openhearth.models.adapter_files import read_adapter
from openhearth.server import Limits, Models, Offer, Patience, Served, Server, build_app, plan_models


@dataclass(frozen=True)
class Running:
    """A server that runs. log: records of the access log so far."""

    url: str
    models: Models
    log: list

    @property
    def served(self) -> Served:
        """The first model; loaded."""
        return self.models.first.served

    @property
    def engine(self):
        return self.served.engine

    def on_engine(self, command):
        """Run a command on the engine's thread, between two steps."""
        with ThreadPoolExecutor(1) as other:  # whatever loop the caller's thread has
            return other.submit(asyncio.run, self.served.thread.run(command)).result()

    def wait_idle(self, timeout_s=120.0):
        """Wait until nothing is open, then check the account of pages."""
        deadline = time.monotonic() + timeout_s
        while self.on_engine(lambda engine: engine.has_work):
            assert time.monotonic() < deadline, self.engine.stats()
            time.sleep(0.02)
        self.on_engine(lambda engine: engine.pages.check())
        stats = self.engine.stats()
        assert (stats.num_used_pages, stats.num_running, stats.num_waiting) == (0, 0, 0), stats
        assert stats.num_free_pages + stats.num_cached_pages == stats.num_pages

    def wait_logged(self, num_lines, timeout_s=120.0):
        """Wait until the access log has that many lines; each follows its answer."""
        deadline = time.monotonic() + timeout_s
        while len(self.log) < num_lines:
            assert time.monotonic() < deadline, self.log
            time.sleep(0.01)

    def wait_line(self, since=0, timeout_s=120.0, **wanted):
        """Wait until a line of the access log from `since` on has these values."""
        deadline = time.monotonic() + timeout_s
        while not any(wanted.items() <= line.items() for line in self.log[since:]):
            assert time.monotonic() < deadline, self.log[since:]
            time.sleep(0.01)


def config_of(home, **env):
    """Return the settings of a machine with this home and nothing else, offline unless env says otherwise."""
    return Config.from_env({"HEARTH_HOME": str(home), "HEARTH_OFFLINE": "1", "HOME": str(home), **env})


def load_tiny(folder, home, **settings):
    """Load a tiny model, deterministic and alone."""
    return load(str(folder) if isinstance(folder, Path) else folder, dtype="float32", num_threads=1,
                config=config_of(home), **settings)


def offer_tiny(folders, home, *, adapters=None, memory_bytes=1 << 30, **settings):
    """Offers of tiny models by name, planned together and not loaded. adapters: model -> name -> folder."""
    stored = {name: hub.find(str(folder), config_of(home)) for name, folder in folders.items()}
    return offer_stored(stored, home, adapters=adapters, memory_bytes=memory_bytes, **settings)


def offer_stored(stored, home, *, adapters=None, memory_bytes=1 << 30, speculate=None, draft=None,
                 **settings):
    """As `offer_tiny`, of models that are found. stored: by name."""
    plans = plan_models(list(stored.values()), memory_bytes, dtype="float32", draft=draft, **settings)

    def loader(plan):
        return lambda: load_tiny(plan.stored, home, weights=plan.weights, cache_bytes=plan.cache_bytes,
                                 speculate=speculate, draft=plan.draft, **settings)

    return [Offer(name, plan, loader(plan), adapters={
        one: read_adapter(Path(path)) for one, path in (adapters or {}).get(name, {}).items()})
        for name, plan in zip(stored, plans, strict=True)]


@contextmanager
def serving(folder, home, *, adapters=(), keys=None, usage=None, shares_cache=False, origins=(), tls=None,
            responses=None, config=None, limits=Limits(), patience=Patience(), **settings):
    """Serve a folder as `tiny` until the block ends. adapters: name -> folder."""
    offers = offer_tiny({"tiny": folder}, home, adapters={"tiny": dict(adapters)}, **settings)

    def plan(pulled):
        return offer_stored({pulled.name.removeprefix("hub:"): pulled}, home, **settings)[0]

    models = Models(offers, memory_bytes=1 << 30, limits=limits, plan=plan)
    with serving_models(models, tls=tls, patience=patience, keys=keys, usage=usage,
                        shares_cache=shares_cache, origins=origins, responses=responses,
                        config=config or config_of(home)) as running:
        yield running


@contextmanager
def serving_models(models, *, around=lambda app: app, tls=None, patience=Patience(), **settings):
    """Serve models, the first of them loaded, until the block ends. around: puts something before the app.

    settings: of `build_app`.
    """
    models.open_first()
    log = []
    app = around(build_app(models, log=log.append, **settings))
    with serving_app(app, tls=tls, patience=patience) as url:
        yield Running(url, models, log)
    assert not any(served.thread.is_alive for served in models.loaded)


@contextmanager
def serving_app(app, *, tls=None, patience=Patience()):
    """Serve an ASGI application on a free port until the block ends; yields its address."""
    is_ready, bound = threading.Event(), bind("127.0.0.1", 0)
    server = Server(app, drain_s=5, on_ready=is_ready.set, tls=tls, patience=patience)
    thread = threading.Thread(target=lambda: server.run(sockets=[bound]), daemon=True)
    thread.start()
    assert is_ready.wait(120)
    try:
        yield address_of(bound, has_tls=tls is not None)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
