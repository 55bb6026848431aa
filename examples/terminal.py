"""What the examples print: what happens, and what is wrong, in one line."""

import logging
import os


def log_to_terminal() -> None:
    """Say what happens; of several processes, the first says what is the same in all of them."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("examples").setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)


def one_line(error: Exception) -> str:
    """What an error says: of one in a worker of the loader, the last line of the traceback."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].partition("Error: ")[2] or lines[-1] if "Traceback" in str(error) else lines[0]
