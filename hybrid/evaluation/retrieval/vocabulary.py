"""Words, numbers and identifiers that samples are made of, drawn without repetition.

The published tasks take their words from a package of English word lists; these are lists of our
own. A key is an adjective and a noun; 59 000 pairs are enough for 500 000 tokens of needles.
"""

import uuid

from hybrid.data.tasks.example import Draws

_ADJECTIVES = """
able aged agile alert ample amused ancient apt arctic ashen avid awake aware azure bald bare basic
bitter blank bleak blithe blunt bold brave brief bright brisk broad bronze busy calm candid careful
cheap cheerful chilly civic civil clean clear clever close cloudy coarse cold comic common cool
coral cosmic cosy crisp cubic curious curly daily damp dapper daring dark deep dense dim distant
double dry dull dusty eager early earnest easy elder elegant empty equal exact faint fair famous
fancy fast fertile few final fine firm fitting flat fleet fluent foggy fond formal fragile frank
free fresh frosty frozen full funny gentle giant gifted glad global golden good grand grateful
great green grey happy hardy harsh hasty hazy heavy hidden hollow honest humble hungry icy ideal
idle inner ivory jolly joyful juicy keen kind large late lazy lean level light likely little lively
local lofty lone long loud loyal lucky lunar mellow merry mild minor misty modern modest moist
narrow native neat noble noisy normal novel oaken old olive open orderly outer pale patient perfect
"""
_NOUNS = """
acorn actor airport album alley amber anchor angle ankle antler apple apron arch arena arrow artist
atlas attic autumn badge bakery balcony bamboo banjo bank barn barrel basin basket bay beach beacon
beam bean bear beaver bell bench berry bicycle birch bird blanket blossom boat book boot border
bottle boulder bow bowl box branch brass bread breeze brick bridge broom brother brush bucket bugle
building bull button cabin cable cactus cake camel camera camp canal candle canoe canyon cape
carpet carriage carrot castle cedar cellar chain chair chalk chapel charm cheese cherry chest
chimney chorus church cinema circle circus city clay cliff clock cloth cloud clover coach coast
coat cobra coin collar comet compass copper cork corn corner cottage cotton county cousin cow
cradle crane crater creek cricket crown crystal cup curtain dairy daisy dance dawn deer delta
desert desk diamond dinner dish dock doctor dolphin donkey door dove dragon drawer dream drum duck
eagle earth echo editor elbow elm ember engine evening falcon farm feather fence fern ferry field
fig film finch finger fir fish flag flame flask flute forest fork fort fountain fox frame frog
fruit galaxy garden gate gem ghost giraffe glacier glass globe glove goat goose grain grape grass
guitar gull hall hammer harbor harp hawk hedge helmet heron hill hive honey hood horn horse hotel
hour house island jacket jar jewel judge jungle kettle key king kitchen kite knight ladder lake
lamp lantern lawn leaf lemon letter library lily lime lion lizard lobster lock lodge lunch magnet
maple marble market meadow melon metal mill mint mirror moon morning moss moth mountain mouse
museum music nest net night north oak oasis ocean olive onion orbit orchard otter oven owl oyster
paddle page palace palm panda paper parade park parrot path peach pear pearl pencil pepper piano
pigeon pillow pilot pine planet plate plaza plum pocket pond pony poplar port potato prairie prince
pumpkin puzzle quarry queen quilt rabbit radio raft rail rain raven reef ribbon rice ring river
road robin rocket roof
"""
ADJECTIVES, NOUNS = _ADJECTIVES.split(), _NOUNS.split()
NUM_PAIRS = len(ADJECTIVES) * len(NOUNS)
# Words of a list without repetition: single ones, and pairs where those are used up.
SINGLE = sorted({*ADJECTIVES, *NOUNS})
NUM_LIST_WORDS = len(SINGLE) + NUM_PAIRS


def words(draws: Draws, count: int) -> list[str]:
    """Distinct `adjective-noun` words."""
    return [_pair(place) for place in draws.distinct(count, 0, NUM_PAIRS).tolist()]


def _pair(place: int) -> str:
    return f"{ADJECTIVES[place // len(NOUNS)]}-{NOUNS[place % len(NOUNS)]}"


def numbers(draws: Draws, count: int, num_digits: int = 7) -> list[str]:
    """Distinct numbers of so many digits, the first not 0."""
    stop = 10**num_digits
    return [str(number) for number in draws.distinct(count, stop // 10, stop).tolist()]


def uuids(draws: Draws, count: int) -> list[str]:
    """Random identifiers of version 4."""
    digits = draws.integers(32 * count, 0, 16).tolist()
    rows = (digits[first : first + 32] for first in range(0, len(digits), 32))
    return [str(uuid.UUID("".join(f"{digit:x}" for digit in row), version=4)) for row in rows]


def letters(draws: Draws, count: int, num_letters: int, first: str = "a") -> list[str]:
    """Distinct words of random letters, from `first` (`a` or `A`) on."""
    drawn = draws.distinct(count, 0, 26**num_letters).tolist()
    return [
        "".join(chr(ord(first) + number // 26**place % 26) for place in range(num_letters))
        for number in drawn
    ]


def list_words(draws: Draws, count: int) -> list[str]:
    """Distinct words of a list: single ones while there are enough, else pairs among them."""
    pool = len(SINGLE) if count <= len(SINGLE) else NUM_LIST_WORDS
    places = draws.distinct(count, 0, pool).tolist()
    return [
        SINGLE[place] if place < len(SINGLE) else _pair(place - len(SINGLE)) for place in places
    ]
