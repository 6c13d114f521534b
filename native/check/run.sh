#!/usr/bin/env bash
# Checks the kernels under AddressSanitizer with UBSan, then under ThreadSanitizer. Needs cmake and gcc or clang.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
build="$(mktemp -d)"
trap 'rm -rf "$build"' EXIT
for sanitizers in address,undefined thread; do
    echo "== $sanitizers"
    cmake -S "$here" -B "$build/$sanitizers" -DSANITIZERS="$sanitizers" >/dev/null
    cmake --build "$build/$sanitizers" --parallel 2 >/dev/null
    if [ "$sanitizers" = thread ]; then set -- no-fork; else set --; fi
    ASAN_OPTIONS=detect_leaks=1 "$build/$sanitizers/check_linear" "$@"
    ASAN_OPTIONS=detect_leaks=1 "$build/$sanitizers/check_rows"
    ASAN_OPTIONS=detect_leaks=1 "$build/$sanitizers/check_vocab"
done
