"""Virtual environments with other versions of some packages that share everything else, PyTorch above all."""

import subprocess
import sys
from pathlib import Path

import torch


def borrowed_environment(folder, *requirements, options=()):
    """Create one in `folder`; return its Python and its own site-packages, which come before the shared ones."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    (site,) = Path(folder).glob("lib/python*/site-packages")
    borrowed = str(Path(torch.__file__).parent.parent)
    (site / "borrowed.pth").write_text(f"import site; site.addsitedir({borrowed!r})\n")  # editable installs work too
    python = str(Path(folder) / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade", *options]
    subprocess.run([*pip, *requirements], check=True)
    return python, site
