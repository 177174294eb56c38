"""Collect the photographs that scikit-image and scikit-learn ship into a folder: `demo_photos.py FOLDER`."""

from __future__ import annotations

import shutil
import sys
from importlib.resources import files
from pathlib import Path

PHOTOS = {
    "skimage.data": [
        "astronaut.png",
        "camera.png",
        "chelsea.png",
        "coffee.png",
        "motorcycle_left.png",
        "rocket.jpg",
    ],
    "sklearn.datasets.images": ["china.jpg", "flower.jpg"],
}


def main(folder: Path) -> None:
    """Copy the photographs; nothing is downloaded."""
    folder.mkdir(parents=True, exist_ok=True)
    for package, names in PHOTOS.items():
        for name in names:
            with files(package).joinpath(name).open("rb") as source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
