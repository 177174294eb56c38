"""The tokeniser against what the Java tokenizer gave, and against that itself where there is one."""

from __future__ import annotations

import importlib
import itertools
import os
import random
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from captioner.evaluation.ptb import tokenize

# A caption, then its tokens as pycocoevalcap 1.2 gives them with Stanford PTBTokenizer 3.4.1.
RECORDED = r"""
A man's dog isn't running , but the dogs' owner won't care .
= a man 's dog is n't running but the dogs owner wo n't care
I'd say they've gone, she'll wait, we're here and he's late.
= i 'd say they 've gone she 'll wait we 're here and he 's late
He can't, couldn't, shouldn't've and ain't; DON'T.
= he ca n't could n't should n't 've and ai n't do n't
It’s the girl’s ball and she doesn’t mind.
= it 's the girl 's ball and she does n't mind
You cannot, CANNOT, gonna, gotta, wanna, lemme and gimme.
= you can not can not gon na got ta wan na lem me and gim me
cannots, wannabe and gonnas stay whole
= cannots wannabe and gonnas stay whole
'Tis the season; 'twas the night; 'tisn't so.
= 't is the season 't was the night 't is n't so
Rock 'n' roll, rock'n'roll, R'n'B, more'n that, a drum 'n bass set
= rock 'n' roll rock 'n' roll r 'n' b more 'n that a drum 'n bass set
'em, 'til, 'till, 'cause, 'bout, 'nuff, 'round
= 'em 'til 'till 'cause bout nuff round
Y'all come at 5 o'clock to O'Neil's ma'am, c'mon, s'mores ne'er e'er
= y' all come at 5 o'clock to o'neil 's ma'am c'mon s'mores ne'er e'er
D'Angelo, l'eau, d'etat, L'Oreal, qu'il, j'ai, m'lady, jusqu'à
= d'angelo l'eau d'etat l'oreal qu'il j' ai m lady jusqu à
The sign's-up crowd's o'clock-ish look
= the sign 's up crowd 's o'clock-ish look
dog'sa isn'ta bone'is dogs'and x'y x'y'z 'a' 'n'
= dog sa is n'ta bone'is dogs and x y x y' z a 'n'
A half-eaten t-shirt, a 3-year-old's e-mail - black-and-white.
= a half-eaten t-shirt a 3-year-old 's e-mail black-and-white
well--known, x---y, a----b, a-----b – and — so ― on -
= well known x y a b a ----- b and so on
-a a- a--b -1 1- 1-2 F-16s 4x4 2x4s 3-D 20-something
= a a a b -1 1 1-2 f-16s 4x4 2x4s 3-d 20-something
A "quoted" word, ``another'' and 'one more', said,"hi"
= a quoted word another and one more said hi
“Curly” ‘quotes’ «and» ‹others› plus .’” and ”’
= curly quotes and others plus ''' and '''
Wait... wait.. wait.... wait . . . wait… end
= wait wait wait wait wait end
Hello! Hello!! What?! Really?? a!b a?b hi!there Yahoo!'s
= hello hello !! what ?! really ?? a!b a?b hi!there yahoo 's
In the U.S. a U.S. Army jeep; u.s.a. and U.K. soldiers, J.R.R. Tolkien
= in the u.s. a u.s. army jeep u.s.a. and u.k. soldiers j.r.r. tolkien
Mr. Smith, Mrs. Jones, Dr. Who and St. Bernard Jr. at Apple Inc. vs. IBM Corp.
= mr. smith mrs. jones dr. who and st. bernard jr. at apple inc. vs. ibm corp.
mr. and mrs. on first st. and 2nd ave. near the blvd. in jan. feb. etc.
= mr. and mrs. on first st. and 2nd ave. near the blvd. in jan. feb. etc.
at 5 p.m. or 6 a.m., 5pm, 5p.m., 10:30pm, 10:30
= at 5 p.m. or 6 a.m. 5pm 5p m. 10:30 pm 10:30
e.g. this, i.e. that, etc., Ph.D. and PhD. and B.Sc. and No. 5 but no. not 7
= e.g. this i.e. that etc. ph.d. and phd and b.sc and no. 5 but no not 7
Jan.5 Jan.a mr.x no.5 no.a5 fig. 2 fig. a pp. 5-6 p. 5 art. 7
= jan. 5 jan. a mr.x no. 5 no.a5 fig. 2 fig a pp. 5-6 p. 5 art. 7
Calif. Mass. mass. Ill. ill. Wash. wash. Miss. miss. Pa. pa. tex. Tex.
= calif. mass. mass ill. ill wash. wash miss. miss pa. pa tex tex.
Vitamin B. The dog. Vitamin B. the dog. Plan A. plan b. Mr. X
= vitamin b the dog vitamin b. the dog plan a. plan b mr. x
the dog., the 5th., a t-shirt., don't., x/y., foo.com., A&B., a.b.; c
= the dog. the 5th. a t-shirt. do n't x/y foo.com. a&b. a.b. c
and/or he/she w/ w/o a/b/c a-b/c-d a/b/c/d /a a/ a//b
= and/or he/she w / w/o a/b/c a-b/c-d a/b/c / d / a a / a / / b
$5 $5.00 US$5 £5 €5 ¥100 5¢ C$ $$ 5$ A$5
= $ 5 $ 5.00 us$ 5 # 5 $ 5 ¥ 100 5 cents c$ $ $ 5 $ a$ 5
5% 5,000 5,000.50 -5 +5 1.5 .5 5. 5.a 1,2,3 1.2.3 1..2 5,,5 1:a 5th. 3:2
= 5 % 5,000 5,000.50 -5 +5 1.5 .5 5 5 a 1,2,3 1.2.3 1 .2 5 ,5 1 a 5th 3:2
1990s '90s 1990's 90's '80 '08, '20s ’90s 1st 2nd 3rd 4th
= 1990s '90s 1990 's 90 's '80 08 '20s ’90s 1st 2nd 3rd 4th
5'10" 6' 6'2 7" 5"x7" 10'x12'
= 5 10 6 6 2 7 5 x7 10 x12
#1 # 5 #hashtag #a1 @user @1 a@b.com a.b@c-d.co.uk <a@b.com> ## @@
= # 1 # 5 #hashtag #a 1 @user @ 1 a@b.com a.b@c-d.co.uk <a@b.com> ## @@
http://www.foo.com/bar?x=y https://x.y. www.foo.com, foo.com foo.com/a.html foo.co.uk a-b.com
= http://www.foo.com/bar?x=y https://x.y www.foo.com foo.com foo.com/a.html foo.co.uk a-b com
statefarm.com index.html a.jpg 1.jpg dsc_001.jpg end.The a.b a.b.c 1a.b
= statefarm.com index.html a.jpg 1.jpg dsc_001 jpg end.the a.b a.b.c 1a b
www.ab-cd.de/path on 1/1-99, a 1,000-foot 10-U.S. a.b.-c drop; jan.a's NA'S aa'S
= www.ab-cd.de/path on 1/1-99 a 1,000-foot 10-u.s. a.b.-c drop jan.a 's na 's aa 's
:) :-) ;) :D :( :-( ^_^ -_- (^_^) (: =) <3 :P XD :/ :a D:
= :-rrb- :--rrb- ;-rrb- :d :-lrb- :--lrb- ^_^ -_- -lrb-^_^-rrb- -lrb- =-rrb- < 3 :p xd / a d
AT&T R&B q&a A+B M&M's black & white &amp; &lt; A&amp;B &nbsp; &quot;x&quot; caf&eacute;
= at&t r&b q & a a+b m&m 's black & white & < a&b x caf&eacute;
* ** *** a*b _ __ a_b a__b _a_ ~ ~~ ^ | a|b \ a\b = == a=b + a+b C++ c# F#
= * ** *** a * b _ __ a_b a __ b _ a _ ~ ~ ~ ^ | a | b \ a \ b = = = a = b + a + b c++ c# f#
😀 a😀b ♥ ★ © ® ™ 20°C 20° × ÷ ± • · ‐ a‐b ¿que? ¡hola! x² H₂O 5²
= a b ♥ ★ © ® ™ 20 ° c 20 ° × ÷ ± • · a‐b ¿ que ¡ hola x ² h ₂ o 5 ²
?!!? ... --- '' `` ; : , . -
= ?!!?
-LRB- -rrb- ''
= -lrb- -rrb-
THE DOG RUNS ; A Dog's Life
= the dog runs a dog 's life
a
= a
.
=
"""

# The same, where a caption or a token has characters that do not show.
RECORDED_UNSEEN = {
    "1 1/2 cups, 1½ cups, 12 3/4": "1\u00a01/2 cups 1 1/2 cups 12\u00a03/4",
    "a\u00a0b 5\u00a0dogs 1\u00a01/2": "a b 5 dogs 1\u00a01/2",
    "(555) 123-4567 10 20 30 100 200": "-lrb-555-rrb-\u00a0123-4567 10 20\u00a030\u00a0100\u00a0200",
    "12-25-2012 2012-12-25": "12-25-2012\u00a02012 -12 -25",
    '<a href="x y"> < a>': '<a\u00a0href="x\u00a0y"> < a >',
    "cafe\u0301 a b\tc  d": "cafe\u0301 a b c d",
    "co\u00adop and soft\u00adhyphen": "coop and softhyphen",
    "a \U0001f600 b\U0001f600c \u2665\ufe0f": "a b c \u2665",
}


def recorded() -> dict[str, str]:
    lines = RECORDED.strip("\n").split("\n")
    pairs = zip(lines[::2], lines[1::2], strict=True)
    return {caption: tokens.removeprefix("=").strip(" ") for caption, tokens in pairs} | RECORDED_UNSEEN


def by_java(captions: list[str]) -> list[str]:
    """What pycocoevalcap makes of each caption; a plain caption after each keeps them from one another."""
    apart = [{"caption": text} for caption in captions for text in (caption, "next")]
    module = importlib.import_module("pycocoevalcap.tokenizer.ptbtokenizer")
    tokenized: list[str] = module.PTBTokenizer().tokenize({0: apart})[0]
    return tokenized[::2]


def java_is_missing() -> bool:
    spec = find_spec("pycocoevalcap")
    if shutil.which("java") is None or spec is None or not spec.submodule_search_locations:
        return True
    # pycocoevalcap writes the captions beside its jar.
    return not os.access(Path(next(iter(spec.submodule_search_locations))) / "tokenizer", os.W_OK)


needs_java = pytest.mark.skipif(
    java_is_missing(),
    reason="needs java and pycocoevalcap: pip install 'captioner[evaluate]', and a Java runtime",
)


@pytest.mark.parametrize("caption", recorded())
def test_tokens_are_those_recorded_from_java(caption: str) -> None:
    assert " ".join(tokenize(caption)) == recorded()[caption]


@needs_java
def test_the_recorded_tokens_are_what_java_gives() -> None:
    assert dict(zip(recorded(), by_java(list(recorded())), strict=True)) == recorded()


def short_strings() -> Iterator[str]:
    """Every string of up to two of these characters, and 6,000 of three to six."""
    signs = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~aA1"
    yield from signs
    yield from map("".join, itertools.product(signs, repeat=2))
    chance = random.Random(0)
    for alphabet in ("anN't.-A 1", "a1-/.,: $+", "aA@.#_-/é 1"):
        for _ in range(2000):
            yield "".join(chance.choices(alphabet, k=chance.randint(3, 6))).strip()


@needs_java
def test_short_strings_are_tokenised_as_by_java() -> None:
    strings = sorted(set(short_strings()) - {""})
    ours = [" ".join(tokenize(text)) for text in strings]
    different = {
        text: (our, java)
        for text, our, java in zip(strings, ours, by_java(strings), strict=True)
        if our != java
    }
    assert len(strings) > 5000
    assert not different


def test_a_caption_does_not_depend_on_the_next() -> None:
    assert tokenize("vitamin B.") == ["vitamin", "b."]
    assert tokenize("vitamin B.\nThe dog") == ["vitamin", "b", "the", "dog"]


@pytest.mark.parametrize("blank", ["", " ", "\n", " . ", "\u200d", "\U0001f600"])
def test_no_words_are_no_tokens(blank: str) -> None:
    assert tokenize(blank) == []


@pytest.mark.parametrize(
    "part", ["a", "a@", "a.a@", "<a ", "<a a='", "1-", ". ", "A&", "http://", "aa'", "(555) "]
)
def test_a_hostile_caption_takes_no_more_than_a_moment(part: str) -> None:
    tokenize(part * (3000 // len(part)))
