"""What runs inside the code sandbox: shuts itself in, then runs a program that nobody vouches for.

Started by `sandbox.py` as a file of its own, with the standard library only. The order matters: limits,
name spaces, files (Landlock), system calls (seccomp), then the program. Without the system call filter
nothing is run.

The filter lets through what a computation needs: memory, time, threads, reading files, writing to what is
open. Not among it: sockets, new processes and programs, signals to others, opening files for writing,
changing any file, tracing, io_uring. Numbers are those of asm/unistd_64.h and asm-generic/unistd.h,
structures those of linux/filter.h, linux/seccomp.h and linux/landlock.h.
"""

import contextlib
import ctypes
import io
import json
import os
import platform
import resource
import struct
import sys

_ALLOWED = {
    "x86_64": (0xC000003E, [
        0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 19, 20, 21, 23, 24, 25, 28, 32, 35, 39, 60, 63,
        79, 89, 96, 97, 98, 99, 100, 102, 104, 107, 108, 110, 131, 158, 186, 201, 202, 204, 213, 217, 218,
        219, 228, 229, 230, 231, 232, 233, 262, 267, 269, 270, 271, 273, 281, 290, 291, 292, 293, 318, 324,
        332, 334, 439]),
    "aarch64": (0xC00000B7, [
        17, 19, 20, 21, 22, 23, 24, 48, 57, 59, 61, 62, 63, 64, 65, 66, 67, 72, 73, 78, 79, 80, 93, 94, 96,
        98, 99, 101, 113, 114, 115, 123, 124, 128, 132, 134, 135, 139, 153, 160, 163, 165, 169, 172, 173,
        174, 175, 176, 177, 178, 179, 214, 215, 216, 222, 226, 233, 278, 283, 291, 293, 439]),
}
"""Architecture -> its audit number and the system calls that are let through whatever their arguments."""

_CHECKED = {
    "x86_64": {"open": 2, "openat": 257, "clone": 56, "clone3": 435, "prlimit64": 302, "fcntl": 72,
               "ioctl": 16},
    "aarch64": {"openat": 56, "clone": 220, "clone3": 435, "prlimit64": 261, "fcntl": 25, "ioctl": 29},
}
_EPERM, _ENOSYS = 1, 38
_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_CLONE_THREAD = 0x10000
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | 0x400000  # the last: O_TMPFILE
_FCNTLS = (0, 1, 2, 3, 4, 1030)
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)

_libc = ctypes.CDLL(None, use_errno=True)


def _op(code, k, jump_true=0, jump_false=0):
    return struct.pack("<HBBI", code, jump_true, jump_false, k)


def _load(offset):
    return _op(0x20, offset)


def _argument(index):
    return _load(16 + 8 * index)


def _answer(value):
    return _op(0x06, value)


def _one_of(index, values):
    """Allow the call when an argument is one of values, else refuse it."""
    code = [_argument(index)]
    for value in values:
        code += [_op(0x15, value, 0, 1), _answer(_ALLOW)]
    return [*code, _answer(_ERRNO | _EPERM)]


def _without_bits(index, bits):
    return [_argument(index), _op(0x45, bits, 0, 1), _answer(_ERRNO | _EPERM), _answer(_ALLOW)]


def _filter(machine):
    """Return the seccomp program: everything that is not named is refused with EPERM."""
    audit, allowed = _ALLOWED[machine]
    numbers = _CHECKED[machine]
    rules = {
        numbers["clone"]: [_argument(0), _op(0x45, _CLONE_THREAD, 0, 1), _answer(_ALLOW),
                           _answer(_ERRNO | _EPERM)],
        numbers["clone3"]: [_answer(_ERRNO | _ENOSYS)],
        numbers["openat"]: _without_bits(2, _WRITES),
        numbers["prlimit64"]: _one_of(0, (0,)),
        numbers["fcntl"]: _one_of(1, _FCNTLS),
        numbers["ioctl"]: _one_of(1, _IOCTLS),
    }
    if "open" in numbers:
        rules[numbers["open"]] = _without_bits(1, _WRITES)
    code = [_load(4), _op(0x15, audit, 1, 0), _answer(_KILL), _load(0)]
    if machine == "x86_64":  # the x32 calls are the same ones under other numbers
        code += [_op(0x35, 0x40000000, 0, 1), _answer(_KILL)]
    for number in allowed:
        code += [_op(0x15, number, 0, 1), _answer(_ALLOW)]
    for number, rule in rules.items():
        code += [_op(0x15, number, 0, len(rule)), *rule]
    return [*code, _answer(_ERRNO | _EPERM)]


def _shut_system_calls():
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _ALLOWED:
        raise OSError(f"no system call filter for {sys.platform} on {machine}")
    code = _filter(machine)
    program = ctypes.create_string_buffer(b"".join(code))
    head = ctypes.create_string_buffer(struct.pack("@HxxxxxxP", len(code), ctypes.addressof(program)))
    if _libc.prctl(38, 1, 0, 0, 0) or _libc.prctl(22, 2, ctypes.byref(head), 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel refuses a system call filter")


def _shut_files():
    """Leave only the standard library and the system's libraries readable; False where that cannot be."""
    version = _libc.syscall(444, None, 0, 1)
    if version < 1:
        return False
    bits = {1: 13, 2: 14}.get(version, 15) if version < 5 else 16
    rules = struct.pack("<QQQ", (1 << bits) - 1, 0b11 if version >= 4 else 0, 0b11 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _libc.syscall(444, rules, size, 0)
    if ruleset < 0:
        return False
    library = os.path.dirname(os.__file__)
    for path in (library, "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/dev/null",
                 "/dev/urandom", "/etc/ld.so.cache"):
        if not os.path.exists(path):
            continue
        place = os.open(path, os.O_PATH)
        rights = 0b1101 if os.path.isdir(path) else 0b100  # execute, read files, list folders
        _libc.syscall(445, ruleset, 1, struct.pack("<Qi", rights, place), 0)
        os.close(place)
    _libc.prctl(38, 1, 0, 0, 0)
    is_shut = _libc.syscall(446, ruleset, 0) == 0
    os.close(ruleset)
    return is_shut


def _shut_in(job):
    """Take away what the program must not have; returns the names of the walls that hold."""
    for name, limit in (("RLIMIT_AS", job["memory_bytes"]), ("RLIMIT_CPU", job["cpu_s"]), ("RLIMIT_FSIZE", 0),
                        ("RLIMIT_CORE", 0), ("RLIMIT_NOFILE", 64)):
        resource.setrlimit(getattr(resource, name), (limit, limit))
    # A user name space of one's own gives the right to the others: no network device, no shared memory.
    has_spaces = _libc.unshare(0x10000000 | 0x40000000 | 0x08000000) == 0
    _libc.prctl(1, 9, 0, 0, 0)  # die with the parent
    has_files = _shut_files()
    _shut_system_calls()
    return ["limits", "system calls", *["files"] * has_files, *["name spaces"] * has_spaces]


def _tell(report, record):
    os.write(report, (json.dumps(record) + "\n").encode())


def _error_text(error):
    return f"{type(error).__name__}: {error}"[:200]


def _run_calls(job, report):
    space = {"__name__": "solution"}
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            exec(compile(job["source"], "solution.py", "exec"), space)
        except BaseException as error:
            return _tell(report, {"error": _error_text(error)})
        for call in job["calls"]:
            try:
                _tell(report, {"value": repr(eval(call, space))})
            except BaseException as error:
                _tell(report, {"error": _error_text(error)})


def _run_program(job, report):
    sys.stdin = io.StringIO(job["stdin"])
    try:
        exec(compile(job["source"], "solution.py", "exec"), {"__name__": "__main__"})
    except SystemExit as leaving:
        _tell(report, {"value": ""} if not leaving.code else {"error": f"exit code {leaving.code}"})
    except BaseException as error:
        _tell(report, {"error": _error_text(error)})
    else:
        _tell(report, {"value": ""})
    sys.stdout.flush()


def main():
    """Read the job from stdin, shut in, run it, and leave without cleaning up."""
    job = json.loads(sys.stdin.read())
    report = job["report_fd"]
    try:
        walls = _shut_in(job)
    except (OSError, ValueError) as error:
        _tell(report, {"refused": _error_text(error)})
        os._exit(1)
    _tell(report, {"walls": walls})
    if "calls" in job:
        _run_calls(job, report)
    else:
        _run_program(job, report)
    os._exit(0)


if __name__ == "__main__":
    main()
