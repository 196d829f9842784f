#!/usr/bin/env python3
"""Draw scenes of emoji and coloured shapes whose contents are known exactly.

The demo model was trained on such scenes and is measured on them: 1 to 3 kinds
of things, 1 to 9 things in all (now and then none), on a background of one
colour or of several.  Nothing is copied from a photo, so the truth beside each
picture is beyond doubt.

    demo/scene.py --seed 1 --split heldout --count 300 -o DIR
    demo/scene.py --seed 1 --count 300 --content crowded -o DIR    7 to 9 things of one kind
    demo/scene.py --seed 1 --count 300 --content singles -o DIR    2 or 3 things, all different
    demo/scene.py --seed 1 --count 300 --content shapes -o DIR     shapes, those of a kind in one colour
    demo/scene.py --shipped -o demo/pictures

The splits share nothing but the kinds of things: the random stream is seeded by
split and seed together, and each has its own backgrounds, layouts and sizes.

                train                                   heldout
    backgrounds plain, graded, striped, plaid, halved   from the middle outwards, checked, in blotches
    layouts     scattered, clustered, in rows           on a ring, a grid, a diagonal, in one half
    shorter side 144 to 288 pixels                      256 to 640 pixels

The same seed gives the same scenes; the bytes of the files may differ between
versions of Pillow and of the font.

DIR receives the pictures, JPEG (four in five) and PNG, and labels.csv, one row
a picture, with a header line and RFC 4180 quoting:

    file        name of the picture in DIR
    shelf       the shelf whose kinds were drawn from; empty when from all
    width       of the whole picture, pixels
    height      of the whole picture, pixels
    background  white gray black red yellow green blue purple; empty when the
                background has no one colour
    counts      JSON object: kind -> how many; absent kinds are left out
    objects     JSON array in the order of drawing: {"kind", "color" (shapes; else
                null), "x", "y" (centre, 0 to 1), "size" (0 to 1), "place"}

x, y and size are fractions of the central square, the part of the picture that
the model sees; every object lies within it.  "place" is the ninth of that square
which holds the centre, as the model says it ("at the top left", "in the center");
null where the centre is within 2 % of a border between two of them.

Needs python3-pil, python3-numpy and fonts-noto-color-emoji.
"""

import argparse
import colorsys
import csv
import json
import math
import os
import random
import sys
from dataclasses import dataclass

try:
    import numpy
    from PIL import Image, ImageDraw, ImageFont
except ImportError as missing:
    sys.exit(f"scene.py: Python's module {missing.name} is missing. On Debian:\n"
             "    apt-get install python3-pil python3-numpy fonts-noto-color-emoji")

FONT = os.environ.get("MMGPT_EMOJI_FONT", "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FONT_PIXELS = 109  # the only size of the font's bitmaps

EMOJI = {
    "dog": "🐶", "cat": "🐱", "rabbit": "🐰", "bird": "🐦", "fish": "🐟", "turtle": "🐢", "horse": "🐴",
    "frog": "🐸", "pig": "🐷", "elephant": "🐘", "butterfly": "🦋",
    "car": "🚗", "bus": "🚌", "bicycle": "🚲", "boat": "⛵", "plane": "✈", "train": "🚂", "rocket": "🚀",
    "tree": "🌳", "flower": "🌻", "mushroom": "🍄",
    "apple": "🍎", "banana": "🍌", "strawberry": "🍓", "carrot": "🥕", "pizza": "🍕", "cake": "🎂", "cup": "☕",
    "house": "🏠", "ball": "⚽", "star": "⭐", "heart": "❤", "umbrella": "☔", "key": "🔑", "book": "📕", "clock": "⏰",
}
SHAPES = ["circle", "square", "triangle"]

# hue in degrees, saturation and value from 0 to 1
SHAPE_COLORS = {
    "red": (0, .85, .85), "orange": (28, .95, .97), "yellow": (54, .9, .97),
    "green": (125, .75, .62), "blue": (222, .8, .85), "purple": (282, .7, .7),
}
BACKGROUNDS = {
    "white": (0, 0, .98), "gray": (0, 0, .55), "black": (0, 0, .08), "red": (0, .65, .85),
    "yellow": (54, .6, .95), "green": (120, .45, .75), "blue": (215, .5, .85), "purple": (280, .45, .75),
}

CANVAS = {"train": (144, 288), "heldout": (256, 640)}  # shorter side, pixels
LAYOUTS = {"train": ["scattered", "scattered", "clustered", "rows"],
           "heldout": ["ring", "grid", "diagonal", "half"]}
NOISE_SIDE = 900                                       # above 640 * MOST_STRETCH
MOST_STRETCH = 1.34                                    # longer side over shorter
PLACES = [["at the top left", "at the top", "at the top right"],
          ["on the left", "in the center", "on the right"],
          ["at the bottom left", "at the bottom", "at the bottom right"]]
PLACE_MARGIN = .02
LEAST_DISTANCE = .18  # between centres

# The pictures in demo/pictures: each shelf draws from its own kinds and seed.
SHELVES = {
    "street": ["car", "bus", "bicycle", "house", "tree", "dog", "umbrella", "train"],
    "garden": ["rabbit", "bird", "cat", "turtle", "horse", "flower", "mushroom", "tree", "butterfly", "frog"],
    "kitchen": ["apple", "banana", "pizza", "cup", "fish", "mushroom", "strawberry", "carrot", "cake", "clock"],
    "toys": ["ball", "star", "heart", "circle", "square", "triangle", "boat", "plane", "rocket", "elephant"],
}
SHIPPED_PER_SHELF = 6
SHIPPED_SEED = 2305
SHIPPED_CANVAS = (256, 384)  # small files

# The pictures in demo/lessons, that a new skill is learned from.
LESSONS = 48
LESSONS_CANVAS = (128, 192)


@dataclass
class Thing:
    """One object of a scene; x, y and size as in labels.csv."""
    kind: str
    color: str | None
    x: float
    y: float
    size: float

    def place(self):
        """Name the ninth of the square that holds the centre; None when it is near a border."""
        if any(abs(v - border) <= PLACE_MARGIN for v in (self.x, self.y) for border in (1 / 3, 2 / 3)):
            return None
        return PLACES[min(2, int(self.y * 3))][min(2, int(self.x * 3))]


@dataclass
class Scene:
    """What a picture shows."""
    background: str | None
    things: list

    def counts(self):
        """Count the things of each kind."""
        kinds = [thing.kind for thing in self.things]
        return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


def hsv_to_pixel(hue, saturation, value):
    """Convert hue (degrees), saturation and value (clipped to 0..1) to RGB, float 0..255, shape (3,)."""
    clip = lambda v: min(max(v, 0), 1)
    return numpy.array(colorsys.hsv_to_rgb(hue % 360 / 360, clip(saturation), clip(value))) * 255


class Painter:
    """Draw scenes; holds what all of them share: sprites and a field of noise."""

    def __init__(self):
        if not os.path.exists(FONT):
            sys.exit(f"scene.py: no font {FONT}. On Debian:\n    apt-get install fonts-noto-color-emoji")
        font = ImageFont.truetype(FONT, FONT_PIXELS)
        self.sprites = {kind: self.cut_sprite(font, glyph) for kind, glyph in EMOJI.items()}
        noise = numpy.random.default_rng(0).normal(0, 1, (NOISE_SIDE, NOISE_SIDE, 3))
        self.noise = noise.astype(numpy.float32)

    @staticmethod
    def cut_sprite(font, glyph):
        """Render a glyph and centre what is drawn of it in a transparent square."""
        image = Image.new("RGBA", (160, 160))
        ImageDraw.Draw(image).text((10, 10), glyph, font=font, embedded_color=True)
        image = image.crop(image.getbbox())
        side = max(image.size)
        square = Image.new("RGBA", (side, side))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return square

    # ---- backgrounds

    @staticmethod
    def shade_of(rng, name):
        """Pick a shade that still goes by the background's name."""
        hue, saturation, value = BACKGROUNDS[name]
        if name == "white":
            return hsv_to_pixel(rng.uniform(0, 360), rng.uniform(0, .04), rng.uniform(.94, 1))
        if name == "gray":
            return hsv_to_pixel(rng.uniform(0, 360), rng.uniform(0, .05), rng.uniform(.42, .68))
        if name == "black":
            return hsv_to_pixel(rng.uniform(0, 360), rng.uniform(0, .2), rng.uniform(.02, .16))
        return hsv_to_pixel(hue + rng.uniform(-8, 8), saturation * rng.uniform(.7, 1.25), value + rng.uniform(-.1, .1))

    @staticmethod
    def any_shade(rng):
        """Pick any soft colour."""
        return hsv_to_pixel(rng.uniform(0, 360), rng.uniform(.1, .6), rng.uniform(.5, .95))

    def paint_background(self, rng, width, height, split, noise_allowed=True):
        """Return the empty canvas and its colour's name (None when it has no one colour)."""
        name = rng.choice(list(BACKGROUNDS))
        one, other = self.shade_of(rng, name), self.shade_of(rng, name)
        if rng.random() < .2:  # of no one colour
            name, one, other = None, self.any_shade(rng), self.any_shade(rng)
        weight = (self.train_weight if split == "train" else self.heldout_weight)(rng, width, height)[..., None]
        pixels = (one * (1 - weight) + other * weight).astype(numpy.float32)
        if noise_allowed and rng.random() < .4:
            top, left = rng.randrange(NOISE_SIDE - height), rng.randrange(NOISE_SIDE - width)
            pixels = pixels + self.noise[top:top + height, left:left + width] * rng.uniform(2, 14)
        return Image.fromarray(numpy.clip(pixels, 0, 255).astype(numpy.uint8)), name

    @staticmethod
    def along(rng, width, height):
        """Distance in a random direction from one end of the canvas (0) to the other (1)."""
        angle = rng.uniform(0, 2 * math.pi)
        distance = (numpy.linspace(-1, 1, width, dtype=numpy.float32)[None, :] * math.cos(angle)
                    + numpy.linspace(-1, 1, height, dtype=numpy.float32)[:, None] * math.sin(angle))
        return (distance / 1.42 + 1) / 2

    def train_weight(self, rng, width, height):
        """How much of the second shade each pixel takes: plain, graded, striped or halved."""
        along = self.along(rng, width, height)
        style = rng.choice(["plain", "graded", "graded", "striped", "halved", "crossed", "plaid"])
        if style == "plain":
            return numpy.zeros((height, width), numpy.float32)
        if style == "striped":
            return numpy.floor(along * rng.randint(3, 14)) % 2
        if style == "halved":
            return (along > rng.uniform(.3, .7)).astype(numpy.float32)
        if style == "plaid":
            return (numpy.floor(along * rng.randint(3, 9)) % 2
                    + numpy.floor(self.along(rng, width, height) * rng.randint(3, 9)) % 2) / 2
        if style == "crossed":
            return (along + self.along(rng, width, height)) / 2
        return along

    def heldout_weight(self, rng, width, height):
        """The same for the held-out split: from the middle outwards, checked, or in blotches."""
        style = rng.choice(["outwards", "checked", "blotches"])
        x = numpy.linspace(0, 1, width, dtype=numpy.float32)[None, :]
        y = numpy.linspace(0, 1, height, dtype=numpy.float32)[:, None]
        if style == "outwards":
            return numpy.minimum(1, numpy.hypot(x - rng.uniform(.3, .7), y - rng.uniform(.3, .7)) / .7)
        if style == "checked":
            fields = rng.randint(3, 9)
            return (numpy.floor(x * fields) + numpy.floor(y * fields)) % 2
        coarse = Image.fromarray(self.noise[:6, :6, 0] * 40 + rng.uniform(90, 160))
        turned = coarse.rotate(90 * rng.randrange(4))
        return numpy.clip(numpy.asarray(turned.resize((width, height), Image.Resampling.BICUBIC)) / 255, 0, 1)

    # ---- things

    def shape_sprite(self, rng, kind, color, side):
        """Draw a circle, square or triangle in a shade of the colour, smoothed by halving."""
        hue, saturation, value = SHAPE_COLORS[color]
        shade = hsv_to_pixel(hue + rng.uniform(-5, 5), saturation * rng.uniform(.85, 1.1), value * rng.uniform(.88, 1.08))
        fill = tuple(int(v) for v in shade) + (255,)
        big = side * 2
        edge = big * .06
        sprite = Image.new("RGBA", (big, big))
        draw = ImageDraw.Draw(sprite)
        if kind == "circle":
            draw.ellipse((edge, edge, big - edge, big - edge), fill=fill)
        elif kind == "square":
            draw.rectangle((big * .12, big * .12, big * .88, big * .88), fill=fill)
        else:
            draw.polygon([(big / 2, edge), (big - edge, big * .9), (edge, big * .9)], fill=fill)
        return sprite.resize((side, side), Image.Resampling.BILINEAR)

    def emoji_sprite(self, rng, kind, side):
        """Scale an emoji, with either of two filters, half of them mirrored."""
        resampling = Image.Resampling.BILINEAR if rng.random() < .5 else Image.Resampling.LANCZOS
        sprite = self.sprites[kind].resize((side, side), resampling)
        return sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < .5 else sprite

    def paint_thing(self, rng, image, thing, square):
        """Paste one thing, turned by up to 15 degrees; square is the central square's side in pixels."""
        side = max(8, int(thing.size * square))
        angle = rng.uniform(-15, 15)
        sprite = (self.shape_sprite(rng, thing.kind, thing.color, side) if thing.color
                  else self.emoji_sprite(rng, thing.kind, side))
        if abs(angle) > 2:
            sprite = sprite.rotate(angle, Image.Resampling.BILINEAR)
        left = (image.width - square) / 2 + thing.x * square - side / 2
        top = (image.height - square) / 2 + thing.y * square - side / 2
        image.paste(sprite, (int(left), int(top)), sprite)

    def paint_scene(self, rng, split, canvas=None, allowed=None, noise_allowed=True, content="any"):
        """Draw one scene of a split; canvas gives the limits of the shorter side where it is not the
        split's own, allowed the kinds (None: all); content as
        on the command line.

        Returns the picture (RGB) and the Scene.
        """
        things = None
        while things is None:
            square = rng.randint(*(canvas or CANVAS[split]))
            width = height = square
            if rng.random() < .3:
                stretched = int(square * rng.uniform(1, MOST_STRETCH))
                width, height = (stretched, square) if rng.random() < .5 else (square, stretched)
            image, background = self.paint_background(rng, width, height, split, noise_allowed)
            things = place_things(rng, choose_content(rng, content, background, allowed), rng.choice(LAYOUTS[split]))
        for thing in things:
            self.paint_thing(rng, image, thing, square)
        return image, Scene(background, things)


def choose_kinds(rng, allowed):
    """Choose 1 to 3 kinds: of all, one in seven a shape; of the allowed ones, evenly."""
    how_many = rng.choices([1, 2, 3], [.35, .35, .3])[0]
    kinds = []
    while len(kinds) < how_many:
        pool = allowed or (SHAPES if rng.random() < .15 else list(EMOJI))
        kind = rng.choice(pool)
        if kind not in kinds:
            kinds.append(kind)
    return kinds


def choose_things(rng, background, allowed):
    """Choose what a scene shows: (kind, colour) pairs, the colour None for an emoji."""
    kinds = choose_kinds(rng, allowed)
    total = max(len(kinds), rng.randint(1, 9))
    if rng.random() < .015:
        return []
    names = kinds + [rng.choice(kinds) for _ in range(total - len(kinds))]
    colors = [color for color in SHAPE_COLORS if color != background]
    one_color_each = rng.random() < .6
    color_of = {kind: rng.choice(colors) for kind in kinds}
    chosen = [(kind, None if kind in EMOJI else color_of[kind] if one_color_each else rng.choice(colors))
              for kind in names]
    rng.shuffle(chosen)
    return chosen


def choose_content(rng, content, background, allowed):
    """The same for a content of the command line: choose until the choice is one of these."""
    while True:
        chosen = choose_things(rng, background, SHAPES if content == "shapes" else allowed)
        kinds = [kind for kind, _ in chosen]
        if (content == "any" or content == "crowded" and max(map(kinds.count, kinds), default=0) >= 7
                or content == "singles" and len(set(kinds)) == len(kinds) >= 2
                or content == "shapes" and len(set(chosen)) == len(set(kinds)) > 0):
            return chosen


def proposer(rng, layout):
    """Return a function that proposes a centre for the i-th of n things of a size; proposals may be unfit."""
    middle_x, middle_y = rng.uniform(.3, .7), rng.uniform(.3, .7)
    turn, spread, rows = rng.uniform(0, 2 * math.pi), rng.uniform(.15, .25), rng.randint(2, 4)
    rising, vertical, low = rng.random() < .5, rng.random() < .5, rng.random() < .5

    def propose(i, n, size):
        if layout == "clustered":
            return rng.gauss(middle_x, spread), rng.gauss(middle_y, spread)
        if layout == "rows":
            return rng.random(), (rng.randrange(rows) + .5) / rows + rng.gauss(0, .02)
        if layout == "ring":
            angle, radius = turn + 2 * math.pi * i / n + rng.gauss(0, .08), rng.uniform(.3, .4)
            return .5 + radius * math.cos(angle), .5 + radius * math.sin(angle)
        if layout == "grid":
            return (rng.randrange(3) + .5) / 3 + rng.gauss(0, .03), (rng.randrange(3) + .5) / 3 + rng.gauss(0, .03)
        x, y = rng.random(), rng.random()
        if layout == "diagonal":
            y = (x if rising else 1 - x) + rng.uniform(-.3, .3)
        if layout == "half":
            x, y = (x, y * .6 + low * .4) if vertical else (x * .6 + low * .4, y)
        return x, y
    return propose


def place_things(rng, chosen, layout):
    """Find places well apart from each other; None when the tries are spent."""
    base = rng.uniform(.19, .34) if len(chosen) <= 5 else rng.uniform(.18, .25)
    propose = proposer(rng, layout)
    things, tries = [], 0
    for i, (kind, color) in enumerate(chosen):
        while True:
            size = base * rng.uniform(.87, 1.13) * (1 if tries < 60 else .85)
            x, y = propose(i, len(chosen), size)
            if (all(size / 2 <= v <= 1 - size / 2 for v in (x, y))
                    and all(math.hypot(x - other.x, y - other.y) > max(LEAST_DISTANCE, .5 * (size + other.size))
                            for other in things)):
                break
            tries += 1
            if tries > 600:
                return None
        things.append(Thing(kind, color, x, y, size))
    return things


# ---- files

def save_picture(rng, image, stem, png):
    """Save as PNG, or as JPEG of some quality; returns the file's name."""
    if png:
        image.save(stem + ".png", optimize=True)
        return os.path.basename(stem) + ".png"
    image.save(stem + ".jpg", quality=rng.randint(60, 95))
    return os.path.basename(stem) + ".jpg"


def label_row(file, shelf, image, scene):
    """Make one row of labels.csv."""
    things = [{"kind": thing.kind, "color": thing.color, "x": round(thing.x, 4), "y": round(thing.y, 4),
               "size": round(thing.size, 4), "place": thing.place()} for thing in scene.things]
    return [file, shelf, image.width, image.height, scene.background or "",
            json.dumps(scene.counts()), json.dumps(things)]


def write_labels(folder, rows):
    """Write labels.csv."""
    with open(os.path.join(folder, "labels.csv"), "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["file", "shelf", "width", "height", "background", "counts", "objects"])
        out.writerows(rows)


def draw_split(painter, split, seed, count, content, folder):
    """Draw the scenes of one split and seed."""
    name = split if content == "any" else f"{split}-{content}"
    rng = random.Random(f"{name} {seed}")
    rows = []
    for number in range(count):
        image, scene = painter.paint_scene(rng, split, content=content)
        stem = os.path.join(folder, f"{name}-{seed}-{number:05d}")
        rows.append(label_row(save_picture(rng, image, stem, png=rng.random() >= .8), "", image, scene))
    return rows


def draw_shipped(painter, folder):
    """Draw the pictures of demo/pictures: as many a shelf, the last of each a PNG without noise."""
    rows = []
    for shelf, kinds in SHELVES.items():
        rng = random.Random(f"shipped {shelf} {SHIPPED_SEED}")
        for number in range(1, SHIPPED_PER_SHELF + 1):
            png = number == SHIPPED_PER_SHELF
            image, scene = painter.paint_scene(rng, "heldout", SHIPPED_CANVAS, kinds, noise_allowed=not png)
            stem = os.path.join(folder, f"{shelf}-{number}")
            rows.append(label_row(save_picture(rng, image, stem, png), shelf, image, scene))
    return rows


def draw_lessons(painter, folder):
    """Draw the pictures of demo/lessons."""
    rng = random.Random(f"lessons {SHIPPED_SEED}")
    rows = []
    for number in range(1, LESSONS + 1):
        image, scene = painter.paint_scene(rng, "train", LESSONS_CANVAS)
        stem = os.path.join(folder, f"lesson-{number:02d}")
        rows.append(label_row(save_picture(rng, image, stem, png=False), "", image, scene))
    return rows


def main():
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description="Draw scenes with known contents, and labels.csv beside them.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--split", choices=sorted(CANVAS), default="heldout")
    parser.add_argument("--count", type=int, default=10, help="pictures to draw (default 10)")
    parser.add_argument("--content", choices=["any", "crowded", "singles", "shapes"], default="any",
                        help="draw only scenes of this content (above)")
    parser.add_argument("--shipped", action="store_true", help="draw the pictures of demo/pictures instead")
    parser.add_argument("--lessons", action="store_true", help="draw the pictures of demo/lessons instead")
    parser.add_argument("-o", dest="folder", required=True, metavar="DIR", help="where to; made when missing")
    args = parser.parse_args()
    if args.count < 1:
        parser.error("--count must be at least 1")
    os.makedirs(args.folder, exist_ok=True)
    painter = Painter()
    rows = (draw_shipped(painter, args.folder) if args.shipped
            else draw_lessons(painter, args.folder) if args.lessons
            else draw_split(painter, args.split, args.seed, args.count, args.content, args.folder))
    write_labels(args.folder, rows)


if __name__ == "__main__":
    main()
