"""A server on a real socket, in a thread of the test's process: torch is loaded once."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from openhearth.config import Config
from openhearth.local import load
from openhearth.models.adapter_files import read_adapter
from openhearth.server import Limits, Served, Server, address_of, bind, build_app


@dataclass(frozen=True)
class Running:
    """A server that runs. log: records of the access log so far."""

    url: str
    served: Served
    log: list

    @property
    def engine(self):
        return self.served.engine

    def on_engine(self, command):
        """Run a command on the engine's thread, between two steps."""
        with ThreadPoolExecutor(1) as other:  # whatever loop the caller's thread has
            return other.submit(asyncio.run, self.served.thread.run(command)).result()

    def wait_idle(self, timeout_s=20.0):
        """Wait until nothing is open, then check the account of pages."""
        deadline = time.monotonic() + timeout_s
        while self.on_engine(lambda engine: engine.has_work):
            assert time.monotonic() < deadline, self.engine.stats()
            time.sleep(0.02)
        self.on_engine(lambda engine: engine.pages.check())
        stats = self.engine.stats()
        assert (stats.num_used_pages, stats.num_running, stats.num_waiting) == (0, 0, 0), stats
        assert stats.num_free_pages + stats.num_cached_pages == stats.num_pages


def load_tiny(folder, home, **settings):
    """Load a tiny model, deterministic and alone."""
    config = Config.from_env({"HEARTH_HOME": str(home), "HEARTH_OFFLINE": "1", "HOME": str(home)})
    return load(str(folder), dtype="float32", num_threads=1, config=config, **settings)


@contextmanager
def serving(folder, home, *, adapters=(), keys=None, limits=Limits(), **settings):
    """Serve a folder as `tiny` until the block ends. adapters: name -> folder."""
    model = load_tiny(folder, home, **settings)
    for name, path in dict(adapters).items():
        model.engine.attach(name, read_adapter(Path(path)).weights)
    served = Served(model, "tiny", adapters=tuple(dict(adapters)), limits=limits)
    log, is_ready = [], threading.Event()
    bound = bind("127.0.0.1", 0)
    server = Server(build_app(served, keys=keys, log=log.append), drain_s=5, on_ready=is_ready.set)
    thread = threading.Thread(target=lambda: server.run(sockets=[bound]), daemon=True)
    url = address_of(bound)
    thread.start()
    assert is_ready.wait(20)
    try:
        yield Running(url, served, log)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive() and not served.thread.is_alive
