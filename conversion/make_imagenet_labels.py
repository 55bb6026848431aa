"""Make imagenet_labels.json, the names of the 1000 classes of ImageNet-1k in the order of the official heads.

    python conversion/make_imagenet_labels.py

They come from imagenet_synsets.txt and imagenet_synset_to_lemma.txt in the wheel of timm 1.0.31 (Apache-2.0), which is
downloaded without its dependencies and read, never installed.
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "timm==1.0.31"
INFO = "timm/data/_info"


def read_labels(wheel: Path) -> list[str]:
    """Names of the classes, in order, from timm's wheel."""
    with zipfile.ZipFile(wheel) as archive:
        synsets = archive.read(f"{INFO}/imagenet_synsets.txt").decode().split()
        lemmas = archive.read(f"{INFO}/imagenet_synset_to_lemma.txt").decode().splitlines()
    names = dict(line.split("\t", 1) for line in lemmas)
    return [names[synset] for synset in synsets]


def main() -> None:
    """Download, read, write."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, WHEEL]
        subprocess.run(command, check=True)
        labels = read_labels(next(Path(folder).glob("*.whl")))
    path = Path(__file__).with_name("imagenet_labels.json")
    path.write_text(json.dumps(dict(enumerate(labels)), indent=0, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
