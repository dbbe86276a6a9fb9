"""What every level of tests shares: the tools that were missing are named at the end of the run."""

import pytest
from hypothesis import settings

from tests.support import tools

# A machine may be busy: how long an example takes says nothing.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name in sorted(tools.missing):
        terminalreporter.write_line(f"MISSING TOOL: {name} (deploy/bootstrap.sh installs it)", red=True, bold=True)
    for note in tools.notes:
        terminalreporter.write_line(note, yellow=True, bold=True)
