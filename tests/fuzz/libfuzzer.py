"""`python -m tests.fuzz.libfuzzer TARGET [option, folder or file ...]`: a target under libFuzzer, with its options.

A file in place of a folder is checked alone, which repeats a crash.
"""

from __future__ import annotations

import sys

try:
    import atheris
except ImportError:
    sys.exit("atheris is missing: it has wheels for Linux on x86-64 and Python 3.11 to 3.13 only")

from tests.fuzz import targets

INSTRUMENTED = ["app", "ml", "worker", "tests", "python_multipart"]


def main() -> None:
    name, *options = sys.argv[1:]
    with atheris.instrument_imports(include=INSTRUMENTED):
        target = targets.load(name)

    def mutate(data: bytes, most_bytes: int, seed: int) -> bytes:
        return bytes(target.mutate(atheris.Mutate(data, most_bytes), seed)[:most_bytes])

    itself = f"{sys.executable} -m tests.fuzz.libfuzzer {name}"  # libFuzzer starts itself where it merges
    atheris.Setup([itself, *options], target.check, **({"custom_mutator": mutate} if hasattr(target, "mutate") else {}))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
