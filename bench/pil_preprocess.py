"""How many pictures a second PIL and torchvision's arithmetic turn into CLIP input, on one thread.

usage: pil_preprocess.py FILE SIZE COUNT       prints pictures per second
       pil_preprocess.py --draw FILE WIDTH HEIGHT   draws a JPEG of that size, quality 90

Resize and crop are PIL's own calls, as torchvision's Resize and CenterCrop make them; torchvision itself adds a
little more. Needs python3-pil and python3-numpy.
"""
import io
import sys
import time

import numpy
from PIL import Image


def draw(path, width, height):
    noise = numpy.random.default_rng(1).integers(0, 255, (height // 8, width // 8, 3), dtype=numpy.uint8)
    Image.fromarray(noise).resize((width, height), Image.BICUBIC).save(path, quality=90)


def preprocess(data, size):
    image = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = image.size
    short = min(width, height)
    image = image.resize((size * width // short, size * height // short), Image.BICUBIC)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return numpy.asarray(image.crop((left, top, left + size, top + size)))


def main():
    if sys.argv[1] == "--draw":
        draw(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        return
    data, size, count = open(sys.argv[1], "rb").read(), int(sys.argv[2]), int(sys.argv[3])
    begin = time.perf_counter()
    for _ in range(count):
        preprocess(data, size)
    print(f"{count / (time.perf_counter() - begin):.2f}")


main()
