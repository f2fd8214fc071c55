"""What on this machine will spoil a measurement, why that matters, and the command that repairs it.

`examine()` looks; `fixed_clocks` and `dedicated` answer the two questions that a measurement's grade depends on.
"""

from __future__ import annotations

from profiler.doctor.checks import CHECKS, examine
from profiler.doctor.findings import Finding, Report
from profiler.doctor.grade import dedicated, fixed_clocks
from profiler.doctor.machine import Machine, Probes

__all__ = ["CHECKS", "Finding", "Machine", "Probes", "Report", "dedicated", "examine", "fixed_clocks"]
