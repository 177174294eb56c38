"""Whether attention points at what a word names: the pointing game of Zhang et al. 2016.

A noun's map hits if its strongest cell lies inside a box of an object that the noun names. Beside it stand
what the photo's centre and a cell drawn at random would hit, for objects are large and near the middle.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from captioner.caption import Caption, RegionMap
from captioner.coco import read_items, read_json
from captioner.content import PEOPLE, content_words
from captioner.errors import DataError

__all__ = ["ObjectBoxes", "PointingScores", "pointing_game"]

K = TypeVar("K", bound=Hashable)
Area = tuple[float, float, float, float]
"""Left, top, right and bottom as shares of a photo's width and height."""

SYNONYMS = {
    "person": PEOPLE,
    "bicycle": {"bike"},
    "motorcycle": {"motorbike", "bike"},
    "airplane": {"plane", "jet", "aeroplane"},
    "car": {"taxi", "cab", "automobile", "suv"},
    "cow": {"cattle", "bull", "calf"},
    "sheep": {"lamb"},
    "dog": {"puppy"},
    "cat": {"kitten"},
    "bird": {"seagull", "duck", "goose", "parrot", "pigeon"},
    "couch": {"sofa"},
    "tv": {"television", "screen"},
    "cell phone": {"cellphone", "smartphone"},
    "refrigerator": {"fridge"},
    "donut": {"doughnut"},
    "sports ball": {"football", "soccerball"},
    "potted plant": {"flowerpot"},
    "wine glass": {"wineglass"},
}
"""Words for the classes of COCO beside their names."""


@dataclass(frozen=True)
class ObjectBoxes:
    """The objects of photos: for each photo by its file's stem, and for each class, its boxes."""

    areas: Mapping[str, Mapping[str, tuple[Area, ...]]]

    @classmethod
    def from_file(cls, path: Path) -> ObjectBoxes:
        """Read a file in the COCO instances format.

        ``{"images": [{"id", "file_name", "width", "height"}], "annotations": [{"image_id", "category_id",
        "bbox": [x, y, width, height]}], "categories": [{"id", "name"}]}``; other keys are ignored.

        Raises:
            DataError: it cannot be read or is not in the format.
        """
        data = read_json(path)
        try:
            names = {
                item["id"]: str(item["name"]).lower() for item, _ in read_items(data, "categories", path)
            }
            sizes = {
                item["id"]: (
                    PurePosixPath(item["file_name"]).stem,
                    float(item["width"]),
                    float(item["height"]),
                )
                for item, _ in read_items(data, "images", path)
            }
            found: dict[str, dict[str, tuple[Area, ...]]] = {stem: {} for stem, _, _ in sizes.values()}
            for item, _ in read_items(data, "annotations", path):
                stem, width, height = sizes[item["image_id"]]
                name, area = names[item["category_id"]], _area(item["bbox"], width, height)
                found[stem][name] = (*found[stem].get(name, ()), area)
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise DataError(
                f"{path}: is not in the COCO instances format ({error!r}): give each object its image_id, "
                "category_id and bbox, each photo its file_name, width and height, each category its name"
            ) from None
        return cls(found)


@dataclass(frozen=True, kw_only=True)
class PointingScores:
    """How often attention points at what a word names, in percent; None where no noun names an object.

    Attributes:
        nouns: how many words name an object that is annotated in their photo.
        hit: those whose map is strongest inside a box of such an object.
        centre: those of which the photo's centre lies inside one.
        random: what a cell drawn at random would hit on average.
    """

    nouns: int
    hit: float | None
    centre: float | None
    random: float | None

    def to_dict(self) -> dict[str, Any]:
        """The figures by name, as JSON-ready data."""
        return {f"pointing_{name}": value for name, value in asdict(self).items()}


def pointing_game(captions: Mapping[K, Caption], boxes: ObjectBoxes) -> PointingScores:
    """Play the pointing game with captions whose words have attention and whose ``file`` is known."""
    scores: defaultdict[str, float] = defaultdict(float)
    nouns = 0
    for caption in captions.values():
        objects = boxes.areas.get(PurePosixPath(caption.file or "").stem, {})
        for word in caption.words:
            areas = [area for name in objects if _names(word.text, name) for area in objects[name]]
            if not areas or word.attention is None:
                continue
            nouns += 1
            cells = list(_cells(word.attention))
            x, y, _ = max(cells, key=lambda cell: cell[2])
            scores["hit"] += _inside(x, y, areas)
            scores["centre"] += _inside(0.5, 0.5, areas)
            scores["random"] += sum(_inside(x, y, areas) for x, y, _ in cells) / len(cells)
    shares = {name: 100 * scores[name] / nouns if nouns else None for name in ("hit", "centre", "random")}
    return PointingScores(nouns=nouns, **shares)


def _names(word: str, category: str) -> bool:
    """Whether a word of a caption names a class: its last word or a synonym, in singular or plural."""
    known = {category.split()[-1], *SYNONYMS.get(category, ())}
    return any(form in known for text in content_words(word) for form in _singulars(text))


def _singulars(word: str) -> Iterator[str]:
    yield word
    for plural, singular in (("ies", "y"), ("ves", "fe"), ("es", ""), ("s", "")):
        if word.endswith(plural):
            yield word.removesuffix(plural) + singular


def _area(bbox: list[float], width: float, height: float) -> Area:
    x, y, w, h = map(float, bbox)
    return x / width, y / height, (x + w) / width, (y + h) / height


def _cells(attention: RegionMap) -> Iterator[tuple[float, float, float]]:
    """The centre of each cell as shares of the photo's width and height, and its weight."""
    for row, weights in enumerate(attention):
        for column, weight in enumerate(weights):
            yield (column + 0.5) / len(weights), (row + 0.5) / len(attention), weight


def _inside(x: float, y: float, areas: list[Area]) -> bool:
    return any(left <= x < right and top <= y < bottom for left, top, right, bottom in areas)
