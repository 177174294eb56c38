"""Penn Treebank tokenisation of captions, as ``pycocoevalcap`` does it, without Java.

The reference is what its ``PTBTokenizer`` gives: Stanford's PTBTokenizer 3.4.1 in lower case, less a list
of punctuation marks. The rules here were found by watching what that does to captions, to lists of words
and to every string of up to three ASCII signs. As there, each rule is tried at a position and the longest
match wins, what it looks ahead at included; the earlier rule wins a tie. Marks that are dropped in the end
have a rule only where it shapes what follows them.
"""

from __future__ import annotations

import re

__all__ = ["tokenize"]


def _any_of(words: str) -> str:
    return "|".join(words.split())


_SPACE = r"[\s\u00a0]"
_APOSTROPHE = r"(?:['\u0092\u2019]|&apos;)"
# Numerals such as "²" and "½", which \w counts as letters, and combining marks, which it does not.
_NUMERALS = r"²³¹¼-¾⁰⁴-⁹₀-₉\u2150-\u2189\u2460-\u249b\u24ea-\u24ff\u2776-\u2793"
_MARKS = (
    r"\u02c2-\u0375\u0483-\u0487\u0591-\u05bd\u064b-\u065e\u0900-\u0963"
    r"\u0966-\u0e3e\u0e40-\u0e4e\u0e50-\u0ecd"
)
_ENTITY = r"&[aeiouAEIOU](?:acute|grave|uml);"
_LETTER = rf"(?:[^\W\d_{_NUMERALS}]|[{_MARKS}]|{_ENTITY})"
_WORD = rf"(?:[^\W_{_NUMERALS}]|[{_MARKS}]|{_ENTITY})"
_DOTTED = rf"{_LETTER}{_WORD}*(?:[.!?]{_LETTER}{_WORD}*)*"
_SEGMENT = rf"(?:[dDoOlL]{_APOSTROPHE}{_WORD}{{2,}}|{_WORD}+)"
_HYPHENED = rf"{_SEGMENT}(?:[-_֊‐‑]{_SEGMENT})*"
_SLASHED = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_JOINED = r"[A-Z]+(?:(?:&|&(?i:amp);|\+)[A-Z]+)+"
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])+"
_NUMBER = r"(?:\d*(?:[.:,\u066b\u066c]\d+)+|\d+)"
_URL = r"""[^\s\u00a0"<>|(){}]+[^\s\u00a0"<>|(){}.!?,-]"""
_EXTENSION = _any_of(
    "bat bmp c cgi class cpp dll docx? exe gif gz h html? jar java jpe?g mov mp3 pdf php pl png ppt ps py"
    " sql tar txt wav x xml zip"
)
_TAG_NAME = r"[A-Za-z][A-Za-z0-9:._-]*"
_ATTRIBUTE = rf"""\s+{_TAG_NAME}(?:\s*=\s*(?:'[^'\r\n]*'|"[^"\r\n]*"))?"""
_EYE = r"[\^x=~<>'-]"
_QUOTE_MARKS = r"‘’“”«»‹›‛`\u0091-\u0094"
# What is none of these, such as an emoji outside the basic plane, is left out.
_SIGNS = (
    r"!-/:-@\[-`{-~\u0080\u0085\u0096\u0097¡-©¬®-´¶-¹¼-¿×÷\u2013-\u2017\u201a\u201e-\u2026\u2030-\u2038\u203b"
    r"\u203e-\u2042\u2044\u2070-\u208e\u20a0\u20a4\u20ac\u2100-\u215e\u2190-\u2bff\u3001\u3002\u3012\u30fb"
    r"\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0\uffe1\uffe5\uffe6"
)

# Abbreviations that keep their full stop: before names; otherwise; if they begin with a capital.
_TITLES = _any_of(
    "adj adm adv alex assoc asst attys? ave brig capt cf cie cmdr col cpl dept det drs? elec ens ft gen"
    " govs? hon insp invt jos lieut lt maj messrs mlle mme mrs? ms msgr mt natl pfc ph pres profs? pvt"
    " reps? rev sens? sfc sgt spc st ste supts? treas vs wm"
)
_ABBREVIATIONS = _any_of(
    "al ala apr ariz assn aug bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc ext"
    " feb fla fri ga inc ind intl jan jr jul jun kans? ky ltd mar md mich minn mon? mont neb nev nov oct"
    " okla penn ph[.]d plc rd rt sept? seq sq sr sys tel tenn thu thurs tues? univ va vt wed wisc? wyo"
    " (?-i:[Mm](?:fg|tg)|P?[Pp]t[ey]s?)"
)
_STATES = _any_of("A(?i:rk|z) D(?i:el) I(?i:ll) L(?i:a) M(?i:ass|iss) O(?i:re) P(?i:a) T(?i:ex) W(?i:ash)")
# These begin a sentence, so that a full stop between them and an initial is not the initial's: "plan B. The".
_OPENERS = _any_of(
    "A About According Additionally After An As At But Earlier He Her Here However If In It Last Many"
    " More Mr[.] Ms[.] Now Once One Other Our She Since So Some Such That The Their Then There These They"
    " This We What When While Yet You"
)

# Where a group matches, it is the token, and the rest is looked ahead at.
_RULES = tuple(
    re.compile(rule)
    for rule in (
        # spaces, tags, entities
        rf"{_SPACE}+|&(?:nbsp|NBSP);",
        rf"<(?:[!?][A-Za-z-][^>\r\n]*|/{_TAG_NAME}\s*|{_TAG_NAME}(?:{_ATTRIBUTE})*\s*(?:/\s*)?)>",
        r"&(?:(?i:amp)|lt|gt|LT|GT|quot|apos|mdash|ndash|MD|#\d+);",
        # addresses and files
        rf"(?i:https?)://{_URL}",
        rf"www\.(?:[^\s\u00a0\"<>|.!?(){{}},]+\.)+[A-Za-z]{{2,4}}(?:/{_URL})?",
        rf"(?:[^\s\u00a0\"!$'(),./:;<=>?@[\\\]^_`{{|}}\dA-Z-]+\.)+(?i:com|net|org|edu)(?:/{_URL})?",
        rf"{_WORD}+(?:\.{_WORD}+)*\.(?i:{_EXTENSION})(?![A-Za-z0-9])",
        r"<?[A-Za-z0-9][^\s\u00a0\"<>|(){}]*@(?:[^\s\u00a0\"<>|(){}.]+\.)*[^\s\u00a0\"<>|(){}.]+>?",
        rf"@[A-Za-z_][A-Za-z_0-9]*|#{_LETTER}+|@@+|##+",
        # words and contractions
        r"(?i:(can)not|(gon|wan)na|(got)ta|(gim|lem)me)",
        _DOTTED,
        rf"([A-Za-z]*[A-MO-Za-mo-z])[nN](?:{_APOSTROPHE}|`)[tT]",
        rf"({_DOTTED}|[A-Za-z0-9]+){_APOSTROPHE}(?i:[msd]|re|ve|ll)(?![A-Za-z])",
        rf"[nN](?:{_APOSTROPHE}|`)[tT](?![A-Za-z])",
        rf"'(?i:[msd]|re|ve|ll)(?![A-Za-z])|(?!'){_APOSTROPHE}(?i:[msd]|re|ve|ll)",
        r"('[tT])(?i:is|was)",
        rf"[A-HJ-XZn]{_APOSTROPHE}{_LETTER}{{2,}}",
        rf"{_LETTER}+[aeiouyAEIOUY]{_APOSTROPHE}[aeiouA-Z]{_LETTER}*",
        rf"(?i:c{_APOSTROPHE}mon|s{_APOSTROPHE}mores|(?:[eo]|ne){_APOSTROPHE}er|ev{_APOSTROPHE}ry|o{_APOSTROPHE}o)",
        rf"(?i:ol{_APOSTROPHE}|[djl]{_APOSTROPHE}|y{_APOSTROPHE}(?={_LETTER}))",
        rf"(?i:{_APOSTROPHE}(?:n{_APOSTROPHE}|n(?:(?={_SPACE})|(?<!'n))|em|tille?|til|cause))",
        rf"{_APOSTROPHE}(?:[2-9]0[sS]|\d\d(?={_SPACE}))",
        # numbers, fractions, dates, telephone numbers
        rf"[-+]?{_NUMBER}",
        r"(?:[0-9]{1,4}[- \u00a0])?[0-9]{1,4}\\?[/\u2044][0-9]{1,4}",
        r"[0-9]{1,2}[-/][0-9]{1,2}[-/][0-9]{2,4}",
        r"(?:\([0-9]{2,3}\)[ \u00a0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \u00a0])?[0-9]{2,4}[- \u00a0])"
        r"[0-9]{3,4}[- \u00a0]?[0-9]{3,5}",
        # abbreviations
        rf"((?:(?i:{_ABBREVIATIONS})|{_STATES})\.)(?s:..)",
        rf"(?i:{_TITLES})\.|{_ACRONYM}\.",
        rf"((?i:art|ca|figs?|nos?|op|pp|prop)\.){_SPACE}?\d",
        rf"([A-Za-z])\.{_SPACE}+(?:{_OPENERS}|{_OPENERS.upper()}){_SPACE}",
        r"[A-Za-z]\.",
        rf"((?:{_HYPHENED}|{_DOTTED}|{_JOINED})\.)[,;:、]",
        # compounds
        rf"[A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:{_ACRONYM}\.|[A-Za-z0-9]+))+",
        _HYPHENED,
        rf"{_SLASHED}(?:\\?/{_SLASHED}){{1,2}}",
        rf"{_JOINED}|[Cc]\+\+|[CcFf]#",
        # faces and signs
        rf"\({_EYE}[_.-]?{_EYE}\)|{_EYE}_{_EYE}|[<>]?[:;=][-o*']?[][()DPdpO\\{{@|](?![A-Za-z0-9])",
        rf"[{_QUOTE_MARKS}]{{1,2}}|''|[A-Z]*\$|[!?]{{2,}}|_+|\*+|\\\*|<<|>>|-+|[²³¹⁰-⁻₀-₋]+",
        r"\.{3,5}|\.(?:[ \u00a0]\.){2,4}|-(?i:[lr][rsc]b)-",
        rf"[{_SIGNS}]",
    )
)

# A run of letters between spaces, by far the most of a caption, is a word by every rule.
_PLAIN_WORD = re.compile(r"(?!(?i:cannot|gonna|wanna|gotta|gimme|lemme)\s)[A-Za-z]+(?=\s)")
_FORMS = {"[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "&lt;": "<", "&gt;": ">", "&nbsp;": ""}
_FORMS |= {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
_FORMS |= {"¢": "cents", "£": "#", "¤": "$", "₠": "$", "€": "$", "\u0080": "$"}
_QUOTES = dict.fromkeys("‘‹‛`\u0091", "`") | dict.fromkeys("’›\u0092", "'")
_QUOTES |= dict.fromkeys("“«\u0093", "``") | dict.fromkeys("”»\u0094", "''")
_CONTRACTION = re.compile(rf"(n?){_APOSTROPHE}(t|[msd]|re|ve|ll)")
# pycocoevalcap's punctuation, and what the tokenizer writes as such. Its "-LRB-" and the like meet no token
# in lower case, so that brackets stay, as do runs such as "!!".
_DROPPED = re.compile(
    r"""[.?!,:;'"`…\u0085–—―\u0096\u0097]|-{1,4}|\.[. \u00a0]+|''|``|&(?i:quot|apos|mdash|ndash|md);"""
)


def tokenize(caption: str) -> list[str]:
    """The tokens of a caption, lower case and without punctuation, as ``pycocoevalcap`` compares them.

    A token may hold no-break spaces, as in a mixed number or a telephone number. One difference is meant:
    there, all captions are one text, so that the next caption can change a caption's end ("plan B." before
    "The …").
    """
    caption = caption.replace("\u00ad", "")
    text = caption + "\n\n"  # the rules look ahead at up to two characters
    tokens: list[str] = []
    position = 0
    while position < len(caption):
        word = _PLAIN_WORD.match(text, position)
        end = word.end() if word else _token_end(text, position)
        token = _normal_form(text[position:end])
        if token and not _DROPPED.fullmatch(token):
            tokens.append(token)
        position = max(end, position + 1)  # a character that no rule takes is left out
    return tokens


def _token_end(text: str, position: int) -> int:
    """Where the token of the longest match ends, or ``position`` if no rule matches there."""
    token_end = longest = position
    for rule in _RULES:
        match = rule.match(text, position)
        if match and match.end() > longest:
            longest = match.end()
            token_end = match.end(match.lastindex or 0)
    return token_end


def _normal_form(raw: str) -> str:
    """A token as the tokenizer writes it; empty for spaces."""
    token = raw.lower()
    if token in _FORMS:
        return _FORMS[token]
    if _QUOTES.keys() >= set(raw):
        return "".join(_QUOTES[mark] for mark in raw)
    contraction = _CONTRACTION.fullmatch(token)
    if contraction:
        return "'".join(contraction.groups())
    token = token.replace("&amp;", "&").replace("(", "-lrb-").replace(")", "-rrb-")
    return re.sub(r"\s", "\u00a0", token.strip())
