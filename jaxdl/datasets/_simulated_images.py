"""Draw small color images of ten things, with the class names of CIFAR-10.

Each image shows one thing, shifted, turned, stretched and mirrored at random, in random colors: light on dark as often
as dark on light. So only the shape gives the class, not a pixel or a mean color.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jaxdl.datasets._cifar10_files import CLASSES, SHAPE, Arrays
from jaxdl.errors import InputError

Floats = NDArray[np.float32]
IMAGES, SEED, FEWEST, MOST = 7200, 0, 120, 1_000_000
SIDE = SHAPE[0]
BLOCK = 256  # images drawn at a time; another number gives other images
FINE = 8  # steps between two characters of a sketch
CLOUDS = 256  # pixels along a side of the sky from which backgrounds are cropped
GRAIN = 32  # gray levels
DARKEST = 110  # the maximum gray level of a dark color; 255 minus that of a light one
# The ranges of the uniform random transformations of a thing.
POINTS = (FINE / 1.3, FINE / 0.85)  # points of a sketch for each pixel
TALL = (0.85, 1.15)  # the factor of POINTS in the vertical
TILT = 0.2  # the maximum tangent
SHIFT = 6.0  # the maximum, in pixels from the center
# One thing for each class, in the order of the classes: # is its body, o its details.
SKETCHES = """
.......##........... .................... .................... ...#............#... .........#..#..#..#.
.......###.......... .................... ............####.... ...##..........##... .........##.#..#.##.
.......####......... .................... ...........######... ...###........###... ..........###..###..
........####........ ......#######....... ...........##o####.. ...##############... ............####....
.##......####....... .....##########..... ...........######### ..################.. ............#####...
.###.....#####...... ....##ooo##ooo##.... ..........######.... ..################.. ...........##o####..
.####..#########.... ...##oooo##oooo##... .......#########.... ..###oo######oo###.. ...........########.
..##############oo#. ..################.. ....############.... ..###oo######oo###.. ...........####.....
..##############oo#. ###################. ...##oooooo######... ..################.. .#........#####.....
.####..#########.... #################### ..###ooooooo####.... oooo#####oo#####oooo .##############.....
.###.....#####...... ####ooo######ooo#### .#####ooooo#####.... ..######oooo######.. ..##o##o##o####.....
.##......####....... ###ooooo####ooooo### ###..##########..... oooo#####oo#####oooo ..####o##o#####.....
........####........ ...oo#oo....oo#oo... .......######....... ...####o####o####... ..###.....#####.....
.......####......... ...ooooo....ooooo... ........#..#........ ....####oooo####.... ..##.#.....#.##.....
.......###.......... ....ooo......ooo.... ........#..#........ .....##########..... ..#..#.....#..#.....
.......##........... .................... .......##.##........ .......######....... ..#..#.....#..#.....

......########...... .................... .............#...... ......###..###...... ....................
..###o########o###.. ...####......####... ............o###.... ......ooo..ooo...... .############.......
.####o########o####. ..##oo##....##oo##.. ...........oo#####.. ......###..###...... .############.......
####o##########o#### ..##oo##....##oo##.. ..........ooo##o#### ......###..###...... .############.#####.
####o##########o#### ..################.. .........ooo######## ....############.... .############.##ooo.
####o#oo####oo#o#### .##################. ........ooo#####.##. ....#oo#oo#oo#o#.... .############.##ooo#
####o#oo####oo#o#### .##################. .oo....ooo######.... ....############.... .############.##ooo#
####o##########o#### .#o##############o#. oo##############.... ....############.... .############.######
.###o##########o###. .##oooooooooooooo##. oo##############.... #################### .############.######
.###o###oooo###o###. ..################.. oo##############.... .##################. .############.######
..##o###oooo###o##.. ...##############... oo##############.... .##oo##oo##oo##oo#.. ####################
....#####oo#####.... .##.############.##. oo###.......####.... ..################.. ####################
.....####oo####..... ####.##########.#### oo##.#.....##.##.... ...##############... .oooo.oooo....oooo..
.....###oooo###..... #####.########.##### o.##.##...##...##... ....############.... .o##o.o##o....o##o..
......########...... .####..##..##..####. ..#...#...#.....#... .oo..oo..oo..oo..oo. .oooo.oooo....oooo..
........####........ ####..###..###..#### ..##..##..##....##.. oo..oo..oo..oo..oo.. ....................
"""


def draw(images: int = IMAGES, seed: int = SEED) -> Arrays:
    """Return drawn images (N, 32, 32, 3) uint8, with labels (N,) int32; a sixth of them is the test set.

    In each set the classes are equally frequent, but for one image, and in random order. The same arguments give
    bit-identical images; another number of images gives other images. Raises InputError for fewer than 120 images or
    more than a million, a negative seed, or a value that is no whole number.
    """
    if not _whole(images) or not FEWEST <= images <= MOST:
        raise InputError(
            f"simulated images must be a whole number from {FEWEST} to {MOST}, got {images!r}. Use simulated:{IMAGES}."
        )
    if not _whole(seed) or seed < 0:
        raise InputError(
            f"simulated images need a whole seed of 0 or more, got {seed!r}. Use simulated:{images}:{SEED}."
        )
    test = -(-int(images) // 6)
    rng = np.random.default_rng(int(seed))
    things, clouds = _things(), _clouds(rng)
    sets = []
    for count in (int(images) - test, test):
        labels = rng.permutation(np.arange(count, dtype=np.int32) % len(CLASSES))
        pixels = np.empty((count, *SHAPE), np.uint8)
        for start in range(0, count, BLOCK):
            rows = slice(start, start + BLOCK)
            pixels[rows] = _render(rng, _transform(rng, things, labels[rows]), clouds)
        sets += [pixels, labels]
    return Arrays(*sets)


def _whole(number: object) -> bool:
    return isinstance(number, (int, np.integer)) and not isinstance(number, bool)


def _things() -> Floats:
    """Return the coverage, 0 to 1, of the body and the details of each thing, (2, 10, H, W), with soft edges."""
    halves = [[line.split() for line in half.splitlines()] for half in SKETCHES.strip().split("\n\n")]
    letters = np.array([[list(row) for row in sketch] for half in halves for sketch in zip(*half, strict=True)])
    # With an empty border, which points outside of the sketch repeat.
    covers = np.pad(np.stack([letters == "#", letters == "o"]), ((0, 0), (0, 0), (2, 2), (2, 2)))
    fine = covers.repeat(FINE, axis=2).repeat(FINE, axis=3).astype(np.int32)
    return (_blur(fine, FINE) / np.float32(FINE**2)).astype(np.float32)


def _clouds(rng: np.random.Generator) -> Floats:
    """Return a smooth, periodic sky (CLOUDS, CLOUDS) with uniformly distributed brightness from 0 to 1."""
    sky = _blur(_blur(rng.integers(0, 1 << 16, (CLOUDS, CLOUDS)), 11), 11)
    ranks = sky.ravel().argsort(kind="stable").argsort(kind="stable")
    return (ranks.reshape(sky.shape) / np.float32(ranks.size)).astype(np.float32)


def _blur(values: NDArray[np.integer], width: int) -> NDArray[np.integer]:
    """Return the sums over squares of `width` points around each point, in integers, without rounding."""
    for axis in (-2, -1):
        values = np.sum([np.roll(values, shift - width // 2, axis) for shift in range(width)], axis=0)
    return values


def _transform(rng: np.random.Generator, things: Floats, labels: NDArray[np.int32]) -> Floats:
    """Return the coverage of each pixel by body and details, (2, N, 32, 32), of randomly transformed things.

    It takes only sums and products: the last bit of a sine differs between machines.
    """

    def between(low: float, high: float) -> Floats:
        return np.float32(low) + np.float32(high - low) * rng.random((len(labels), 1, 1), np.float32)

    height, width = things.shape[2:]
    points = between(*POINTS)
    mirrored = np.where(between(-1, 1) < 0, -points, points)
    tall, tilt, right, down = between(*TALL), between(-TILT, TILT), between(-SHIFT, SHIFT), between(-SHIFT, SHIFT)
    places = np.arange(SIDE, dtype=np.float32) - np.float32((SIDE - 1) / 2)
    across, along = places[None, None, :] - right, places[None, :, None] - down
    columns = mirrored * across + mirrored * tilt * along + np.float32(width / 2)
    rows = points * tall * along - points * tall * tilt * across + np.float32(height / 2)
    column = np.clip(columns, 0, width - 1).astype(np.int32)
    row = np.clip(rows, 0, height - 1).astype(np.int32)
    return things.reshape(2, -1).take((labels[:, None, None] * height + row) * width + column, axis=1)


def _render(rng: np.random.Generator, covers: Floats, clouds: Floats) -> NDArray[np.uint8]:
    """Return images (N, 32, 32, 3) of the coverage in random colors, on random clouds, with grain."""
    body, details = covers
    count = len(body)
    # Two colors of clouds and one of details are light and the color of the body dark, or the reverse.
    colors = rng.integers(0, DARKEST, (4, count, 3, 1, 1)).astype(np.float32)
    light = rng.integers(0, 2, (count, 1, 1, 1)).astype(bool)
    colors = np.where(np.stack([light, light, light, ~light]), 255 - colors, colors)
    down, right = rng.integers(0, CLOUDS, (2, count, 1, 1))
    window = np.arange(SIDE)
    sky = clouds[(down + window[:, None]) % CLOUDS, (right + window) % CLOUDS]
    pixels = rng.integers(0, GRAIN, (count, *SHAPE), np.uint8)
    for channel in range(SHAPE[2]):
        back, more, detail, front = colors[:, :, channel]
        picture = back + (more - back) * sky
        picture += (front - picture) * body + (detail - picture) * details
        picture += pixels[..., channel]
        pixels[..., channel] = np.clip(picture - np.float32(GRAIN / 2), 0, 255)
    return pixels
