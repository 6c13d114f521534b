"""Put this folder on PYTHONPATH: every internet socket a process opens is written to $SOCKET_LOG.

An audit hook sees what the interpreter's socket module does, whoever calls it.
"""

import os
import sys

_log = os.environ.get("SOCKET_LOG")
_INTERNET = {2, 10, 30}  # AF_INET; AF_INET6 on Linux and macOS


def _watch(event, args):
    if event == "socket.__new__" and args[1] in _INTERNET:
        line = f"socket family={args[1]}\n"
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        line = f"{event} {args[0]}\n"
    else:
        return
    with open(_log, "a") as file:
        file.write(f"{sys.argv} {line}")


if _log:
    sys.addaudithook(_watch)
