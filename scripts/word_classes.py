"""Write into a checkpoint's config.json the word classes that captions teach, for rules of grammar.

``captioner train`` does so for every new model. This is for one that has none, or for more captions:

    python scripts/word_classes.py weights/default flickr8k/train.json captions.jsonl.gz
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path

from captioner.tokenizer import CaptionTokenizer, TokenizerConfig
from captioner.training.classes import with_word_classes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path, help="a checkpoint directory with a vocabulary of whole words")
    parser.add_argument(
        "captions",
        type=Path,
        nargs="+",
        help='COCO captions, or lines of {"captions": [...]} in a .jsonl or .jsonl.gz',
    )
    given = parser.parse_args()
    path = given.model / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    tokenizer = CaptionTokenizer.from_file(
        given.model / "tokenizer.json", TokenizerConfig.from_dict(config["tokenizer"])
    )
    learned = with_word_classes(tokenizer, (text for file in given.captions for text in captions(file)))
    config["tokenizer"] = learned.config.to_dict()
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)
    classes = learned.config.classes
    assert classes is not None
    print(f"{len(classes.modifiers)} modifiers, such as {learned.decode(classes.modifiers[:8])}")


def captions(file: Path) -> Iterator[str]:
    """The captions of a file."""
    if file.suffix == ".json":
        for annotation in json.loads(file.read_text(encoding="utf-8"))["annotations"]:
            yield annotation["caption"]
        return
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield from json.loads(line)["captions"]


if __name__ == "__main__":
    main()
