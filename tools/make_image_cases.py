"""Write the size cases of test/golden/images: pictures of odd sizes, and what Pillow makes of them.

    python3 tools/make_image_cases.py test/golden/images

Each case is WIDTHxHEIGHT.png, random colours, and WIDTHxHEIGHT_SIZE.png: the shorter side resized to SIZE
with Pillow's bicubic filter, and the centre square cut out as torchvision does. Needs Pillow 11 or later.
"""
import random
import sys

from PIL import Image

CASES = [
    (37, 53, 32), (53, 37, 32), (120, 80, 48), (48, 48, 48), (64, 64, 63), (1, 1, 16), (2, 2, 24), (2, 3, 24),
    (5, 300, 32), (101, 67, 33), (160, 120, 7), (90, 91, 1), (20000, 1, 224), (1, 20000, 224), (3, 700, 40),
]


def resized_length(length, shorter, size):
    return int(size * length / shorter)


def crop_offset(length, size):
    return int(round((length - size) / 2.0))


def resize_cropped(image, size):
    """Resize along one axis, cut, then along the other: the whole would not fit where a side is thin."""
    width, height = image.size
    shorter = min(width, height)
    wide, high = resized_length(width, shorter, size), resized_length(height, shorter, size)
    left, top = crop_offset(wide, size), crop_offset(high, size)
    image = image.resize((wide, height), Image.Resampling.BICUBIC).crop((left, 0, left + size, height))
    return image.resize((size, high), Image.Resampling.BICUBIC).crop((0, top, size, top + size))


def main(folder):
    generator = random.Random(1)
    for width, height, size in CASES:
        image = Image.frombytes("RGB", (width, height), generator.randbytes(3 * width * height))
        image.save(f"{folder}/{width}x{height}.png")
        resize_cropped(image, size).save(f"{folder}/{width}x{height}_{size}.png")


if __name__ == "__main__":
    main(sys.argv[1])
