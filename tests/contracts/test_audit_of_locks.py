"""What `make audit` says: known vulnerabilities, and never that all is well when the database was not reached."""

from __future__ import annotations

import email
import json
import sys
from pathlib import Path

import pytest

from requirements import audit

SAFE = {"name": "anyio", "version": "4.16.0", "vulns": []}
SKIPPED = {"name": "amqp", "skip_reason": "could not be audited: amqp (5.4.2)"}
VULNERABLE = {
    "name": "pillow",
    "version": "12.0",
    "vulns": [{"id": "CVE-2026-1", "fix_versions": ["13.0.0"], "aliases": [], "description": "x"}],
}


@pytest.mark.parametrize(
    ("packages", "status", "says"),
    [
        ([SAFE], audit.CLEAN, "No known vulnerability"),
        ([SAFE, VULNERABLE], audit.VULNERABLE, "pillow 12.0: CVE-2026-1 (repaired in 13.0.0)"),
        ([SAFE, SKIPPED], audit.NOT_AUDITED, "NOT AUDITED"),
        ([SKIPPED, VULNERABLE], audit.VULNERABLE, "NOT AUDITED"),
    ],
)
def test_SEC10_the_report_says_what_is_known_and_what_is_not(packages: list[object], status: int, says: str) -> None:
    lines, result = audit.report({"api.txt": audit.parse(json.dumps({"dependencies": packages}), "")})

    assert result == status
    assert says in "\n".join(lines)
    assert ("No known vulnerability in" in "\n".join(lines)) == (status == audit.CLEAN)


def test_an_audit_that_fails_says_why_and_is_no_success(tmp_path: Path) -> None:
    outcome = audit.audit(tmp_path / "lock.txt", _failing(tmp_path, "ConnectionError: the index cannot be reached"))
    lines, status = audit.report({"lock.txt": outcome})

    assert status == audit.NOT_AUDITED
    assert "the index cannot be reached" in lines[0]
    assert lines[-1].startswith("NOT AUDITED")


def _failing(folder: Path, message: str) -> str:
    """A program that ends like pip-audit without a network."""
    program = folder / "pip-audit"
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.exit({message!r})\n")
    program.chmod(0o700)
    return str(program)


@pytest.mark.parametrize(
    ("stated", "licence"),
    [
        ("License-Expression: MIT\nLicense: long text\n", "MIT"),
        ("Classifier: License :: OSI Approved :: BSD License\n", "BSD License"),
        ("License: Apache 2.0\n        and its whole text\n", "Apache 2.0"),
        ("Classifier: Topic :: Software\n", "unknown"),
    ],
)
def test_a_licence_is_what_the_package_states(stated: str, licence: str) -> None:
    assert audit.licence_of(email.message_from_string(stated)) == licence  # type: ignore[arg-type]


def test_every_shipped_package_of_this_platform_states_a_licence() -> None:
    names = {name for lock in audit.SHIPPED for name in audit.names_in(audit.FOLDER / lock)}
    unknown = {line.split()[0] for line in audit.licences(names) if line.endswith("unknown")}

    assert len(names) > 50
    assert unknown <= {"cuda-toolkit"}  # NVIDIA's list of its own packages, which state theirs
