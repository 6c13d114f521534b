"""Loads an installed `_native` on the CPU at hand and checks a linear layer; needs Python alone, no torch.

Meant for emulated CPUs that are older than the one that compiled the module:

    qemu-x86_64 -cpu Haswell "$(python -c 'import sys; print(sys.executable)')" native/check/old_cpu.py FOLDER

FOLDER holds `_native.*.so` (the installed package `openhearth`). Prints a line per instruction set: why it
is missing, or that its result is right. Any other end (illegal instruction, wrong sum) is a failure.
"""

import array
import importlib
import sys

ISAS = {"avx2": 1, "avx512": 2, "amx": 3}
ROWS, OUTPUTS, INPUTS = 5, 70, 33


def address(numbers):
    return numbers.buffer_info()[0]


def check_linear(native, isa):
    """Small whole numbers: every order of summation gives the exact result."""
    x = array.array("f", [(i * 7) % 13 - 6 for i in range(ROWS * INPUTS)])
    weight = array.array("f", [(i * 5) % 17 - 8 for i in range(OUTPUTS * INPUTS)])
    out = array.array("f", bytes(4 * ROWS * OUTPUTS))
    room = array.array("b", bytes(native.packed_bytes(OUTPUTS, INPUTS, False) + 64))
    packed = (address(room) + 63) // 64 * 64
    native.pack_weight(address(weight), INPUTS, OUTPUTS, INPUTS, False, packed)
    native.linear(isa, address(x), INPUTS, packed, 0, address(out), OUTPUTS, ROWS, OUTPUTS, INPUTS, False,
                  False)
    for row in range(ROWS):
        for column in range(OUTPUTS):
            want = sum(x[row * INPUTS + k] * weight[column * INPUTS + k] for k in range(INPUTS))
            assert out[row * OUTPUTS + column] == want, (row, column, out[row * OUTPUTS + column], want)


def main():
    sys.path.insert(0, sys.argv[1])
    native = importlib.import_module("_native")
    native.set_num_threads(2)
    for name, number in ISAS.items():
        why = native.missing(number)
        if why:
            try:
                native.linear(number, 0, 0, 0, 0, 0, 0, 0, 0, 0, False, False)
                raise SystemExit(f"{name}: {why}, and yet it ran")
            except ValueError as error:
                assert str(error) == why
        else:
            check_linear(native, number)
        print(f"{name}: {why or 'right'}")


if __name__ == "__main__":
    main()
