"""`hearth serve` as a process of its own, on a free port."""

import re
import subprocess
import sys
import threading

import pytest

from support.command import environment

READY = re.compile(r"serving (?P<names>.+) at (?P<url>https?://\S+) \(context (\d+) tokens")


class Process:
    """A server process with its stderr read along."""

    def __init__(self, home, *args, socket_log=None):
        command = [sys.executable, "-m", "openhearth", "serve", *map(str, args), "--port", "0"]
        self.process = subprocess.Popen(
            command, env=environment(home, socket_log=socket_log, HEARTH_OFFLINE="1"), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.lines = []
        for line in self.process.stderr:
            self.lines.append(line)
            if found := READY.match(line):
                self.names, self.url = found["names"], found["url"]
                break
        else:
            pytest.fail("".join(self.lines))
        self._reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr))
        self._reader.start()

    def end(self, number):
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(120)
        self._reader.join()
        return code
