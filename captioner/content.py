"""Which words of a caption say something of the photograph, and which of them name colours and people."""

from __future__ import annotations

import re

__all__ = ["COLOURS", "FUNCTION_WORDS", "PEOPLE", "content_words", "word_set", "words_of"]


def word_set(text: str) -> frozenset[str]:
    """The words of a list, which stand between spaces."""
    return frozenset(text.split())


FUNCTION_WORDS = word_set(
    """
a an the this that these those some any each every all both another other others one
i me my we us our you your he him his himself she her hers herself it its itself they them their
themselves who whom whose which what where when there here
and or but nor so as if than then because though although while no not
of in on at to by with without for from into onto out off up down over under above below through
throughout across along around about near nearby behind beside besides between among against toward
towards before after during inside outside upon within next top front back side
is are was were be been being am do does did doing done has have had having can could will would may
might must shall should
very too also just only more most such
"""
)
"""Words that hold a sentence together: articles, pronouns, conjunctions, prepositions, auxiliaries and the
like. All other words are content words, numbers among them.
"""

COLOURS = word_set(
    """
black white red blue green yellow orange pink purple brown gray grey tan beige gold golden silver violet
turquoise maroon navy teal khaki blond blonde brunette
"""
)

PEOPLE = word_set(
    """
person persons people man men woman women boy boys girl girls child children kid kids baby babies toddler
toddlers infant infants lady ladies guy guys gentleman gentlemen male males female females adult adults
teenager teenagers teen teens someone somebody human humans individual individuals couple couples family
families friend friends crowd crowds audience spectator spectators team teams mother father mom dad parent
parents son daughter brother sister brothers sisters husband wife bride groom player players athlete
athletes batter pitcher catcher umpire referee goalie quarterback coach swimmer swimmers diver runner
runners racer racers skier skiers snowboarder snowboarders skateboarder skateboarders skater skaters
surfer surfers bicyclist bicyclists cyclist cyclists biker bikers motorcyclist motorcyclists rider riders
driver drivers hiker hikers climber climbers jogger joggers wrestler boxer cheerleader cheerleaders dancer
dancers singer singers musician musicians guitarist drummer performer performers artist worker workers
soldier soldiers officer officers policeman policemen cop cops fireman firemen firefighter firefighters
chef cook waiter waitress vendor vendors farmer fisherman fishermen cowboy student students teacher
teachers doctor doctors nurse pedestrian pedestrians passenger passengers tourist tourists shopper
shoppers astronaut clown
"""
)
"""Words that say that there is a person in the photograph."""

_WORD = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*")


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation and the possessive 's."""
    return [word.removesuffix("'s") for word in _WORD.findall(text.lower().replace("’", "'"))]


def content_words(text: str) -> list[str]:
    """Those words of a text that are no function words, in order."""
    return [word for word in words_of(text) if word not in FUNCTION_WORDS]
