"""`make audit`: known vulnerabilities of everything in the hashed locks, and the licences of what is installed.

pip-audit asks PyPI's advisory database (SEC10). A package that the database does not answer for counts as not audited:
pip-audit itself skips it and reports that nothing was found.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent
SHIPPED = ("api.txt", "worker.txt")  # the locks of the images
CLEAN, VULNERABLE, NOT_AUDITED = 0, 1, 2  # exit statuses
LONGEST = 60  # characters of a licence; some packages put its whole text there


class Outcome(NamedTuple):
    """What is known of the packages of one lock.

    Attributes:
        audited: How many the database answered for.
        vulnerable: Of each package with known vulnerabilities its name, version, and their ids with the versions that
            repair them.
        skipped: Names of those that it did not answer for.
        error: Why there is no answer at all, else empty.
    """

    audited: int
    vulnerable: list[str]
    skipped: list[str]
    error: str = ""


def audit(lock: Path, pip_audit: str) -> Outcome:
    """Ask the database about every package of a lock."""
    flags = ("--require-hashes", "--disable-pip", "--format=json", "--progress-spinner=off")
    done = subprocess.run([pip_audit, *flags, "-r", lock], capture_output=True, text=True, check=False)
    return parse(done.stdout, done.stderr)


def parse(output: str, errors: str) -> Outcome:
    """The outcome in what pip-audit printed."""
    try:
        packages: list[dict[str, Any]] = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        lines = errors.strip().splitlines() or ["pip-audit printed nothing"]
        return Outcome(0, [], [], lines[-1][:300])
    answered = [package for package in packages if "skip_reason" not in package]
    return Outcome(
        audited=len(answered),
        vulnerable=[describe(package) for package in answered if package.get("vulns")],
        skipped=[package["name"] for package in packages if "skip_reason" in package],
    )


def describe(package: dict[str, Any]) -> str:
    """A package and its vulnerabilities in one line."""
    ids = (f"{one['id']} (repaired in {', '.join(one['fix_versions']) or 'no version'})" for one in package["vulns"])
    return f"{package['name']} {package['version']}: {', '.join(ids)}"


def report(outcomes: dict[str, Outcome]) -> tuple[list[str], int]:
    """Lines for the reader, and the exit status; the last line says in one sentence what is known."""
    lines = []
    for name, outcome in outcomes.items():
        lines.append(
            f"{name}: {outcome.audited} packages audited, {len(outcome.vulnerable)} with known vulnerabilities, "
            f"{len(outcome.skipped)} not audited" + (f": {outcome.error}" if outcome.error else "")
        )
        lines += [f"  VULNERABLE {line}" for line in outcome.vulnerable]
    vulnerable = any(outcome.vulnerable for outcome in outcomes.values())
    unanswered = any(outcome.skipped or outcome.error for outcome in outcomes.values())
    if unanswered:
        lines.append(
            "NOT AUDITED: the advisory database could not be reached, or does not answer for every package. This says "
            "nothing about them."
        )
    if vulnerable:
        lines.append("VULNERABLE: raise the versions above in pyproject.toml, then `make lock`.")
    if not (vulnerable or unanswered):
        lines.append("No known vulnerability in any locked package.")
    return lines, VULNERABLE if vulnerable else NOT_AUDITED if unanswered else CLEAN


def names_in(lock: Path) -> list[str]:
    """The names of the packages of a lock, sorted."""
    return sorted(re.findall(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==", lock.read_text(), re.MULTILINE))


def licence_of(package: metadata.PackageMetadata) -> str:
    """The licence that a package states: as SPDX, by classifier, or in words; `unknown` where it states none."""
    if expression := package.get("License-Expression"):  # type: ignore[attr-defined]
        return str(expression)
    classifiers = [line.rpartition(" :: ")[2] for line in package.get_all("Classifier", []) if line[:7] == "License"]
    if named := [name for name in classifiers if name != "OSI Approved"]:
        return ", ".join(named)
    words = (package.get("License") or "").strip().splitlines()  # type: ignore[attr-defined]
    return words[0][:LONGEST] if words else "unknown"


def licences(names: Iterable[str]) -> list[str]:
    """A line for each package that is installed here: name, version, licence."""
    lines = []
    for name in names:
        try:
            package = metadata.metadata(name)
        except metadata.PackageNotFoundError:  # of another platform
            lines.append(f"{name:36} {'':14} not installed on this platform")
        else:
            lines.append(f"{name:36} {package['Version']:14} {licence_of(package)}")
    return lines


def main(pip_audit: str) -> int:
    """Print both lists; 0 when every package was audited and none is vulnerable, 1 if one is, 2 if not all were."""
    print("Licences of what the images hold\n")
    print("\n".join(licences(sorted({name for lock in SHIPPED for name in names_in(FOLDER / lock)}))))
    print("\nKnown vulnerabilities\n")
    lines, status = report({lock.name: audit(lock, pip_audit) for lock in sorted(FOLDER.glob("*.txt"))})
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
