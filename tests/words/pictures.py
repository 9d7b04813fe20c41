"""Pictures of coloured words and digits, and sentences about them."""

import random

from PIL import Image, ImageDraw, ImageFont

SIDE = 32
COLOURS = {
    "red": (214, 38, 38),
    "green": (30, 150, 60),
    "blue": (40, 70, 220),
    "yellow": (225, 200, 20),
    "purple": (150, 40, 170),
    "orange": (240, 130, 20),
}
NAMES = (*"0123456789", "cat", "dog", "sun", "key", "box", "fly")
PAIRS = [(colour, name) for colour in COLOURS for name in NAMES]
HELD_OUT = [pair for at, pair in enumerate(PAIRS) if at % 5 == 0]
"""Never seen in training: neither a picture nor a sentence has such a name in such a colour."""
TRAINED = [pair for pair in PAIRS if pair not in HELD_OUT]

_SENTENCES = ("a {} {}", "the {} {}", "a photo of a {} {}.", "{} {}", "a picture of the {} {}")


def picture(colour: str, name: str, seed: int) -> Image.Image:
    """A word or a digit in a colour, somewhere on a dark or light ground; another one for each seed."""
    chance = random.Random(f"{colour} {name} {seed}")
    ground = chance.choice((chance.randrange(0, 50), chance.randrange(205, 256)))
    image = Image.new("RGB", (SIDE, SIDE), (ground, ground, ground))
    size = chance.uniform(20, 26) if len(name) == 1 else chance.uniform(14, 16)
    shade = tuple(max(0, min(255, level + chance.randrange(-20, 21))) for level in COLOURS[colour])
    place = SIDE / 2 + chance.uniform(-2, 2), SIDE / 2 + chance.uniform(-2, 2)
    ImageDraw.Draw(image).text(place, name, shade, ImageFont.load_default(size), anchor="mm")
    return image


def sentence(colour: str, name: str, chance: random.Random) -> str:
    """About such a picture; one in four does not say the colour."""
    said = "" if chance.random() < 0.25 else colour
    return " ".join(chance.choice(_SENTENCES).format(said, name).split())
