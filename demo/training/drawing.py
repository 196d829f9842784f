"""Draw the scenes of the training run and keep them as the model sees them.

Each shard is a pair of files: SPLIT-NNN.npy, uint8 [scenes, S, S, 3], the pictures
after CLIP's resize and crop, and SPLIT-NNN.json, what they show.  A finished shard
is never drawn again, so an interrupted run goes on where it was.
"""

import io
import json
import multiprocessing
import os
import random
import sys

import numpy
from PIL import Image

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import scene  # noqa: E402

SHARD = 2000

_painter = None


def preprocess(image, side):
    """Resize the shorter side and crop the middle as CLIP does; returns uint8 [side, side, 3]."""
    width, height = image.size
    if width <= height:
        width, height = side, int(side * height / width)
    else:
        width, height = int(side * width / height), side
    left, top = round((width - side) / 2), round((height - side) / 2)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return numpy.asarray(resized.crop((left, top, left + side, top + side)))


def as_file(rng, image):
    """Put the picture through a file format and back, as every picture in a table was."""
    buffer = io.BytesIO()
    if rng.random() < .8:
        image.save(buffer, "JPEG", quality=rng.randint(60, 95))
    else:
        image.save(buffer, "PNG", compress_level=1)
    return Image.open(buffer).convert("RGB")


def draw_shard(task):
    """Draw one shard; task is (folder, split, number, scenes, side)."""
    global _painter
    folder, split, number, count, side = task
    _painter = _painter or scene.Painter()
    rng = random.Random(f"training {split} {number}")
    pictures = numpy.empty((count, side, side, 3), numpy.uint8)
    truths = []
    for i in range(count):
        image, shown = _painter.paint_scene(rng, split)
        pictures[i] = preprocess(as_file(rng, image), side)
        truths.append({"background": shown.background,
                       "things": [[t.kind, t.color, t.x, t.y, t.size] for t in shown.things]})
    stem = os.path.join(folder, f"{split}-{number:03d}")
    with open(stem + ".json.new", "w", encoding="utf-8") as file:
        json.dump(truths, file)
    numpy.save(stem + ".new.npy", pictures)
    os.rename(stem + ".new.npy", stem + ".npy")
    os.rename(stem + ".json.new", stem + ".json")
    return count


def draw(folder, split, scenes, side, progress):
    """Draw what is missing of so many scenes, on all cores; progress(done, of) is called now and then."""
    os.makedirs(folder, exist_ok=True)
    shards = [(folder, split, number, min(SHARD, scenes - number * SHARD), side)
              for number in range((scenes + SHARD - 1) // SHARD)]
    missing = [shard for shard in shards
               if not os.path.exists(os.path.join(folder, f"{split}-{shard[2]:03d}.json"))]
    done = scenes - sum(shard[3] for shard in missing)
    with multiprocessing.get_context("fork").Pool() as pool:
        for count in pool.imap_unordered(draw_shard, missing):
            done += count
            progress(done, scenes)


def load(folder, split, scenes):
    """Read what was drawn: pictures uint8 [scenes, S, S, 3], and the list of truths."""
    pictures, truths = [], []
    for number in range((scenes + SHARD - 1) // SHARD):
        stem = os.path.join(folder, f"{split}-{number:03d}")
        pictures.append(numpy.load(stem + ".npy"))
        with open(stem + ".json", encoding="utf-8") as file:
            truths += json.load(file)
    return numpy.concatenate(pictures), truths
