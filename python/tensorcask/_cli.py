"""The command line tool, as a script of this package: ``tensorcask`` or ``python -m tensorcask``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence


def _open_standard_files() -> None:
    """Opens those of the file descriptors 0 to 2 that are closed, on the null device.

    Otherwise the next file that is opened gets such a number, and output would be written to it: to a store's file.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _interrupts_end_the_process() -> None:
    """Gives Ctrl-C its default effect, since Python's handler does not run before native code returns.

    A process that ignores interrupts, such as one in the background of a script, goes on ignoring them.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line tool and returns its exit code. It is meant to be the last thing that a process does.

    Args:
        arguments: The command and its arguments. By default those of the process.

    Returns:
        0 for success; 1 if a key does not exist; 2 if damage was found; 3 if the arguments or the input are wrong;
        4 if the store or the disk failed; 130 after an interrupt.
    """
    try:
        _open_standard_files()
        _interrupts_end_the_process()
        from . import _native

        return _native.main(["tensorcask", *(sys.argv[1:] if arguments is None else arguments)])
    except KeyboardInterrupt:
        return 130
