"""Terminal output of the examples: log lines, and errors in one line."""

import logging
import os


def log_to_terminal() -> None:
    """Log to standard error. Of several processes, only the first one logs what is the same in all of them."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("examples").setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)


def one_line(error: Exception) -> str:
    """Return the first line of an error message, or the last line of the traceback of a data loader worker."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].partition("Error: ")[2] or lines[-1] if "Traceback" in str(error) else lines[0]
