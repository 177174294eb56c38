"""Count captions with faults of grammar in the predictions of ``captioner evaluate``.

    captioner evaluate --images DIR --captions COCO.json --predictions found.jsonl
    python scripts/sentence_faults.py weights/default found.jsonl

A fault is a content word that comes twice, a noun phrase that ends or goes on before its noun ("in front of a
parked", "the lit up at night"), and a last word that needs another one after it. Which words are modifiers is
what the model's word classes say.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from captioner.checkpoint import read_config
from captioner.content import content_words
from captioner.tokenizer import CaptionTokenizer, TokenizerConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path, help="a checkpoint directory with word classes")
    parser.add_argument("predictions", type=Path, help="what `captioner evaluate --predictions` wrote")
    parser.add_argument("--show", action="store_true", help="print the captions with faults")
    given = parser.parse_args()
    config = TokenizerConfig.from_dict(read_config(given.model)["tokenizer"])
    if config.classes is None:
        parser.error(f"{given.model} has no word classes: scripts/word_classes.py writes them")
    tokenizer = CaptionTokenizer.from_file(given.model / "tokenizer.json", config)
    counts, captions = Counter[str](), 0
    for line in given.predictions.read_text(encoding="utf-8").splitlines():
        caption = json.loads(line)["caption"]
        captions += 1
        found = faults(caption, tokenizer)
        counts.update(found)
        counts["any"] += bool(found)
        if found and given.show:
            print(", ".join(sorted(found)), caption, sep="\t")
    for name in ("repeated word", "phrase without its noun", "cut off", "any"):
        print(f"{name}\t{counts[name]} of {captions}")


def faults(caption: str, tokenizer: CaptionTokenizer) -> set[str]:
    """The kinds of faults of a caption."""
    classes = tokenizer.config.classes
    assert classes is not None
    words, ids = content_words(caption), tokenizer.encode(caption)
    found = {"repeated word"} if len(set(words)) < len(words) else set()
    open_phrase = begun = False
    for place, token in enumerate(ids):
        if open_phrase and token in classes.closing:
            found.add("phrase without its noun")
        if token in classes.determiners:
            begun, open_phrase = True, False
        elif token in classes.modifiers:
            open_phrase = begun
        elif not (token in classes.conjunctions and open_phrase and place + 1 < len(ids)):
            begun = open_phrase = False
    if open_phrase:
        found.add("phrase without its noun")
    if ids and ids[-1] in tokenizer.config.never_last_ids:
        found.add("cut off")
    return found


if __name__ == "__main__":
    main()
