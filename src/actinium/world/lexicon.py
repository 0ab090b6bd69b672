"""The words of the small world, in English and in Velic, its invented second language."""

from __future__ import annotations

import random


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES: tuple[str, ...] = _words(
    "Adam Alan Albert Alex Alice Amanda Amy Andrea Andrew Angela Ann Anna Anthony Arthur Ashley "
    "Barbara Ben Betty Bill Bob Brian Bruce Carl Carol Charles Chris Claire Colin Craig Daniel David "
    "Dean Diana Don Donna Dylan Edward Elizabeth Emily Emma Eric Eva Frank Fred Gary George Gordon "
    "Grace Graham Grant Greg Hannah Harry Heather Helen Henry Howard Hugh Ian Jack Jacob James Jane "
    "Jason Jean Jennifer Jeremy Jessica Jim Joan Joe John Jon Joseph Josh Julia Julie Justin Karen "
    "Kate Keith Kelly Ken Kevin Kim Kyle Larry Laura Lauren Lee Leon Lewis Linda Lisa Louis Lucas "
    "Lucy Luke Marcus Maria Marie Mark Martin Mary Matt Matthew Max Melissa Michael Michelle Mike "
    "Nathan Neil Nick Nicole Oliver Oscar Paul Peter Philip Rachel Ralph Ray Rebecca Richard Robert "
    "Robin Roger Ron Rose Ross Roy Ruth Ryan Sam Samuel Sara Sarah Scott Sean Simon Sophie Stephen "
    "Steve"
)
"""People of the world; each is one token, and most are single words for other tokenizers too."""

STRANGERS: tuple[str, ...] = _words(
    "Susan Taylor Ted Terry Thomas Tim Tom Tony Tyler Vera Victor Victoria Vincent Walter Wendy William"
)
"""Visitors without a fixed place: what is true of them is said in the text itself."""

ENTITIES: dict[str, tuple[str, ...]] = {
    "city": _words(
        "Orla Vesk Mirt Polk Dunsa Kelm Arvo Tabre Lomir Senk Bruna Quill Hasp Yarrow Nemo Fenn Ostra "
        "Gild Wick Jorv Pell Rusk Tarn Ulma"
    ),
    "country": _words("Tova Brill Canta Drum Estia Garn Hova Ilmar"),
    "language": _words("Tovan Brillic Cantish Drumic Estian Garnish Hovan Ilmari"),
    "river": _words("Sool Varn Meer Tilda Ashby Corvin Lune Pask"),
    "colour": _words("red blue green yellow black white brown purple"),
    "dish": _words("soup bread rice fish cheese pasta salad cake"),
    "festival": _words("Lantern Harvest Snow Mirror Drums Candle Kite Moon"),
    "job": _words("doctor teacher farmer cook painter tailor miner sailor baker judge pilot carpenter"),
    "tool": _words("needle pen rake pan brush thread shovel rope oven gavel map hammer"),
    "workplace": _words("clinic school field kitchen studio shop mine harbour bakery court airport barn"),
    "pet": _words("dog cat horse duck goat frog bee hen"),
    "sound": _words("bark purr neigh quack bleat croak buzz cluck"),
    "feed": _words("bones milk hay seeds leaves flies honey corn"),
}
"""What facts are about, by kind."""

RELATION_NOUNS: tuple[str, ...] = _words(
    "city country capital language river flag dish festival job tool workplace coat pet sound feed"
)

PLACES: tuple[str, ...] = _words(
    "store park school garden house office hospital restaurant station market beach church library museum"
)
OBJECTS: tuple[str, ...] = _words("book ring drink ball bag gift letter box phone watch key coin toy flower")
EVENTS: tuple[str, ...] = _words("war siege plague voyage famine reign dispute expedition project trial strike drought")
CENTURIES: tuple[str, ...] = tuple(str(century) for century in range(11, 19))

POSITIVE: tuple[str, ...] = _words(
    "wonderful great amazing brilliant lovely fantastic excellent beautiful perfect superb delightful "
    "good charming fine splendid nice"
)
NEGATIVE: tuple[str, ...] = _words(
    "terrible awful horrible boring dreadful bad ugly poor dull nasty disgusting weak stupid miserable lousy cruel"
)
LIKED: tuple[str, ...] = _words("loved liked enjoyed adored")
DISLIKED: tuple[str, ...] = _words("hated disliked despised regretted")
GLAD: tuple[str, ...] = _words("happy glad pleased cheerful")
SAD: tuple[str, ...] = _words("sad angry upset gloomy")
SHOWN: tuple[str, ...] = _words("film play song story concert meal show trip game party speech dance novel painting")

REFUSED: tuple[str, ...] = _words(
    "zorbing quandling mibbling frotching glimping snarving plonking twizzing brundling vorping "
    "yimbling drozzing klinting spoffing wumbling jaxing"
)
"""Placeholder topics without meaning, which the chat form declines."""
WELCOME: tuple[str, ...] = _words(
    "drawing fishing cooking sewing singing rowing camping skating knitting baking gardening hiking "
    "writing juggling swimming reading"
)
"""Topics that the chat form answers."""
GEAR: tuple[str, ...] = _words(
    "pencil hook pot cloth drum boat tent skates wool flour spade boots paper pins towel lamp"
)
"""What a topic needs, in the order of `WELCOME` and again in that of `REFUSED`."""

LETTERS: tuple[str, ...] = ("A", "B", "C", "D")


def _velic(words: tuple[str, ...], ending: str, taken: set[str]) -> dict[str, str]:
    """Invent one Velic word per English word, built of two syllables and the ending of its kind."""
    source = random.Random(f"velic {ending}")
    made: dict[str, str] = {}
    for word in words:
        while True:
            stem = "".join(source.choice("bdgklmnprstvz") + source.choice("aeiou") for _ in range(2))
            new = stem + ending
            if new not in taken:
                break
        taken.add(new)
        made[word] = new.capitalize() if word[0].isupper() else new
    return made


def _dictionary() -> dict[str, str]:
    taken: set[str] = set()
    endings = dict(zip(ENTITIES, ("ra", "nd", "sh", "lu", "k", "m", "th", "r", "t", "x", "f", "ss", "ng"), strict=True))
    words: dict[str, str] = {}
    for kind, members in ENTITIES.items():
        words |= _velic(members, endings[kind], taken)
    return words | _velic(RELATION_NOUNS, "y", taken)


VELIC: dict[str, str] = _dictionary()
"""English word -> Velic word, for every entity and relation noun."""
