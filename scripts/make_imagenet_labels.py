"""Write conversion/imagenet_labels.json: the names of the ImageNet-1k classes, in the order of the official heads.

    python scripts/make_imagenet_labels.py

The names come from imagenet_synsets.txt and imagenet_synset_to_lemma.txt in the wheel of timm 1.0.31 (Apache-2.0). The
wheel is downloaded without its dependencies and read, never installed.
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "timm==1.0.31"
INFO = "timm/data/_info"
LABELS = Path(__file__).resolve().parent.parent / "conversion" / "imagenet_labels.json"


def read_labels(wheel: Path) -> list[str]:
    """Read the names of the classes, in order, from timm's wheel."""
    with zipfile.ZipFile(wheel) as archive:
        synsets = archive.read(f"{INFO}/imagenet_synsets.txt").decode().split()
        lemmas = archive.read(f"{INFO}/imagenet_synset_to_lemma.txt").decode().splitlines()
    names = dict(line.split("\t", 1) for line in lemmas)
    return [names[synset] for synset in synsets]


def main() -> None:
    """Download the wheel, and write the names."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, WHEEL]
        subprocess.run(command, check=True)
        labels = read_labels(next(Path(folder).glob("*.whl")))
    text = json.dumps(dict(enumerate(labels)), indent=0, ensure_ascii=False)
    LABELS.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
