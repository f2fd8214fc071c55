"""What a check found, and all of it together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["problem", "warning", "note", "ok", "absent"]
"""`problem`: numbers taken now would be wrong. `warning`: they will scatter or drift. `note`: to know when reading them.
`ok`: looked at and harmless. `absent`: this machine does not tell, so nobody knows."""

ORDER: tuple[Severity, ...] = ("problem", "warning", "note", "absent", "ok")


@dataclass(frozen=True)
class Finding:
    """The answer of one check."""

    name: str
    severity: Severity
    seen: str
    """What was found, in words, with the values."""
    why: str | None = None
    """Why that matters for a measurement; None where nothing is to be said."""
    fix: str | None = None
    """A command that can be pasted; None where there is none, and `why` then says what can be done."""


@dataclass(frozen=True)
class Report:
    """All findings, worst first."""

    findings: tuple[Finding, ...]

    @classmethod
    def of(cls, findings: Sequence[Finding]) -> Report:
        """Sorted by severity; within one severity in the order of the checks, which is that of their weight."""
        return cls(tuple(sorted(findings, key=lambda finding: ORDER.index(finding.severity))))

    @property
    def spoilers(self) -> tuple[Finding, ...]:
        """Problems and warnings."""
        return tuple(finding for finding in self.findings if finding.severity in ("problem", "warning"))

    @property
    def verdict(self) -> str:
        """The whole report in one sentence."""
        count, bad = len(self.findings), self.spoilers
        unknown = sum(finding.severity == "absent" for finding in self.findings)
        unseen = f"; {unknown} of {count} could not be looked at" if unknown else ""
        if not bad:
            return f"Nothing found that will spoil measurements here ({count} checks{unseen})."
        things = "1 thing" if len(bad) == 1 else f"{len(bad)} things"
        worst = "" if len(bad) == 1 else "the worst: "
        return f"{things} will spoil measurements here; {worst}{bad[0].name}: {bad[0].seen} ({count} checks{unseen})."

    def to_json(self) -> dict[str, Any]:
        """For another program: `{"verdict": …, "spoilers": n, "findings": [{name, severity, seen, why, fix}, …]}`."""
        return {
            "verdict": self.verdict,
            "spoilers": len(self.spoilers),
            "findings": [asdict(finding) for finding in self.findings],
        }
