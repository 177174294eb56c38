"""The words of a caption, as search compares them: without case, irregular forms by their base.

Regular forms are left to the Porter stemmer, which does not know that ``children`` belongs to ``child``.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = ["compared"]

_EAST_ASIAN = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_EAST_ASIAN}]|[^\W_{_EAST_ASIAN}]+")
"""A character of Chinese or Japanese, which have no spaces, or a word of any other script."""

_FORMS = """
man men, woman women, child children, person people persons, mouse mice, goose geese, foot feet
tooth teeth, ox oxen, wolf wolves, knife knives, leaf leaves, shelf shelves, loaf loaves, half halves
calf calves, scarf scarves, wife wives, hoof hooves, elf elves, bookshelf bookshelves
headscarf headscarves, policeman policemen, fireman firemen, gentleman gentlemen, fisherman fishermen
groomsman groomsmen, horseman horsemen, crewman crewmen, airman airmen, snowman snowmen
businessman businessmen, workman workmen, policewoman policewomen, businesswoman businesswomen
schoolchild schoolchildren, grandchild grandchildren, lie lies lying lain, tie ties tying, die dies dying
sit sat, stand stood, ride rode ridden, eat ate eaten, hold held, wear wore worn, run ran, fly flew flown
drive drove driven, throw threw thrown, catch caught, swim swam swum, take took taken, go went gone
fall fell fallen, hang hung, break broke broken, write wrote written, make made, build built, sleep slept
keep kept, draw drew drawn, grow grew grown, blow blew blown, give gave given, show shown, sell sold
tell told, lead led, dig dug, stick stuck, swing swung, strike struck, bend bent, hide hid hidden
bite bitten, sing sang sung, sweep swept, win won, bring brought, buy bought, teach taught, kneel knelt
lay laid, feed fed, spin spun, shake shook shaken, steal stole stolen, weave wove woven
choose chose chosen, speak spoke spoken
"""
_BASES = {form: base for base, *forms in map(str.split, re.split("[,\n]", _FORMS.strip())) for form in forms}
"""Of words that captions of photographs have; none that is often something else, as ``rose`` is."""


def compared(text: str) -> str:
    """A text's words with a space between them; each character of Chinese or Japanese is one.

    Two texts that say the same in another spelling are equal: capitals and small letters, ``ß`` and ``ss``,
    letters that were put together and such that were not, halves of characters that no text can have.
    """
    text = unicodedata.normalize("NFKC", text.encode(errors="replace").decode()).casefold()
    return " ".join(_BASES.get(word, word) for word in _WORD.findall(text))
