"""What every level of tests shares: the tools that were missing are named at the end of the run."""

import signal

import pytest
from hypothesis import settings

from tests.support import tools

# A machine may be busy: how long an example takes says nothing.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


# In a shell's background job Ctrl-C is ignored, and would be by every command that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name in sorted(tools.missing):
        terminalreporter.write_line(f"MISSING TOOL: {name} (deploy/bootstrap.sh installs it)", red=True, bold=True)
    for note in tools.notes:
        terminalreporter.write_line(note, yellow=True, bold=True)
