"""A module built here runs on an older CPU: newer instructions stand only where isa.cpp guards the way.

Read from the object files that the package is linked of, compiled with its flags. A file for one
instruction set may hold nothing that the linker could take for the rest of the program (inline functions
of the C++ library, say), and nothing that runs when the module is loaded.
"""

import platform
import re

import pytest
from support.native_build import NO_SANITIZERS, build, run, tool

# By name or by register: Intel's manual, volume 2, VEX and EVEX encodings, BMI, AMX. `tzcnt` is left out: it
# is how a plain `rep bsf` is printed, which compilers write for every CPU.
AVX_OR_NEWER = re.compile(
    r"\t(v(?!er[rw])[a-z]\w*|pdep|pext|mulx|rorx|s[ah][lr]x|andn|bextr|bls(?:r|i|msk)|bzhi|lzcnt)\b|%[yz]mm\d")
AVX512_OR_NEWER = re.compile(r"%zmm|%[xy]mm(?:1[6-9]|2\d|3[01])|%k[0-7]|%tmm")
AMX = re.compile(r"\t(?:tile|tdp|ldtilecfg|sttilecfg)\w*|%tmm")
FORBIDDEN = {"": AVX_OR_NEWER, "avx2": AVX512_OR_NEWER, "avx512": AMX}
IS_X86 = platform.machine().lower() in {"x86_64", "amd64"}


@pytest.fixture(scope="module")
def objects():
    """[(source file, the instruction set in its name or "", object file)], compiled without sanitizers."""
    folder = build(NO_SANITIZERS, "kernels")
    found = {path.name.removesuffix(".o"): path for path in folder.rglob("*.cpp.o")}
    assert {"isa.cpp", "pool.cpp", "linear.cpp"} <= set(found)
    isas = {source: re.search(r"_(avx2|avx512|amx)\w*\.cpp$", source) for source in found}
    assert any(isas.values()) == IS_X86
    return [(source, match[1] if (match := isas[source]) else "", path) for source, path in found.items()]


def lines_with(pattern, path):
    disassembly = run([tool("objdump"), "-d", "--no-show-raw-insn", str(path)])
    return [line for line in disassembly.splitlines() if pattern.search(line)]


def test_no_file_holds_instructions_beyond_those_in_its_name(objects):
    for source, isa, path in objects:
        if isa in FORBIDDEN:
            found = lines_with(FORBIDDEN[isa], path)
            assert not found, f"{source}: {found[:5]}"


def test_the_patterns_find_what_they_look_for(objects):
    patterns = {"avx2": AVX_OR_NEWER, "avx512": AVX512_OR_NEWER, "amx": AMX}
    for source, isa, path in objects:
        assert not isa or lines_with(patterns[isa], path), source


def test_a_file_for_one_instruction_set_shares_nothing_and_runs_nothing_at_load(objects):
    for source, isa, path in objects:
        if isa:
            symbols = [line.split()[-2:] for line in run([tool("nm"), str(path)]).splitlines()]
            # Inline functions and their like; DW.ref is an address that unwinding looks up, no code.
            shared = [name for kind, name in symbols if kind in "uvVW" and not name.startswith("DW.ref.")]
            assert not shared, f"{source}: {shared}"
            assert all(isa in name for kind, name in symbols if kind in "TBDR"), source
            assert ".init_array" not in run([tool("objdump"), "-h", str(path)]), source
