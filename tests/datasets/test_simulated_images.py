"""The drawn images: reproducible, balanced, and told apart by shape alone."""

import hashlib
import re

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jaxdl.datasets._cifar10_files import CLASSES, image_data
from jaxdl.datasets._simulated_images import BLOCK, SKETCHES, draw
from jaxdl.errors import InputError


@pytest.fixture(scope="module")
def drawn():
    return draw(1800)


def linear(inputs, labels):
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=200)).fit(inputs, labels)


def patches(images, side=9):
    """Grey squares of every second place, (images, places, side * side), without their mean brightness."""
    windows = sliding_window_view(images.mean(3, dtype=np.float32), (side, side), (1, 2))[:, ::2, ::2]
    flat = windows.reshape(len(images), -1, side * side)
    return flat - flat.mean(2, keepdims=True)


def pixels(images):
    return images.mean(3, dtype=np.float32).reshape(len(images), -1) / 64 - 2


def strongest(images, filters):
    """What a convolution and a maximum over all places make of images, the sign of the contrast left out."""
    parts = np.array_split(images, len(images) // 50)
    result = np.concatenate([np.abs(patches(part) @ filters.T).max(1) for part in parts])
    return result / result.mean(1, keepdims=True)


@pytest.mark.parametrize(("images", "test"), [(120, 20), (121, 21), (126, 21), (127, 22), (6 * BLOCK + 6, BLOCK + 1)])
def test_a_sixth_is_to_test_with(images, test):
    arrays = draw(images)
    shapes = [array.shape for array in arrays]
    assert shapes == [(images - test, 32, 32, 3), (images - test,), (test, 32, 32, 3), (test,)]
    assert [array.dtype for array in arrays] == [np.uint8, np.int32, np.uint8, np.int32]
    assert image_data(arrays, "drawn", "memory").classes == CLASSES
    for labels in (arrays.train_labels, arrays.test_labels):
        counts = np.bincount(labels, minlength=len(CLASSES))
        assert len(counts) == len(CLASSES) and counts.max() - counts.min() <= 1


def test_the_order_is_random(drawn):
    for labels in (drawn.train_labels, drawn.test_labels):
        # One neighbour in ten is of the same class by chance; sorted labels would make it nearly all of them or none.
        assert 0.05 < np.mean(labels[1:] == labels[:-1]) < 0.15
        assert abs(np.corrcoef(labels, np.arange(len(labels)))[0, 1]) < 0.2


def test_the_numbers_decide(drawn):
    again, other = draw(np.int64(1800), np.uint8(0)), draw(1800, 1)
    assert all(np.array_equal(one, two) for one, two in zip(drawn, again, strict=True))
    assert not any(np.array_equal(one, two) for one, two in zip(drawn, other, strict=True))


def test_the_same_images_on_every_machine():
    digest = hashlib.sha256()
    for array in draw(600, 7):
        digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")))
    assert digest.hexdigest() == "f2f54d43b25cdf71a60ebf71b13144364abfbd5b287bd70ee957eb1bc69eb0ab"


def test_no_image_is_there_twice(drawn):
    images = np.concatenate([drawn.train_images, drawn.test_images])
    assert len({image.tobytes() for image in images}) == len(images) == 1800


def test_every_image_shows_something(drawn):
    """Each has light and dark, and in each class the thing is the lighter of the two about as often as the darker."""
    grey = drawn.train_images.mean(3)
    assert np.ptp(np.percentile(grey, [2, 98], axis=(1, 2)), axis=0).min() > 40
    border = np.concatenate([grey[:, [0, -1]].reshape(len(grey), -1), grey[:, :, [0, -1]].reshape(len(grey), -1)], 1)
    contrast = np.median(grey[:, 8:24, 8:24], axis=(1, 2)) - np.median(border, axis=1)
    for label in range(len(CLASSES)):
        of_class = contrast[drawn.train_labels == label]
        assert 0.35 < np.mean(of_class > 0) < 0.65


def test_color_says_nothing_about_the_class(drawn):
    train, test = (images.mean((1, 2)) for images in (drawn.train_images, drawn.test_images))
    assert linear(train, drawn.train_labels).score(test, drawn.test_labels) < 0.2


def test_local_shapes_tell_the_class_and_pixels_do_so_worse(drawn):
    """A convolution with patches of training images, and nothing learned but a linear model, beats a dense network."""
    rng = np.random.default_rng(0)
    result = patches(drawn.train_images[:200])
    result = result[rng.integers(0, 200, 256), rng.integers(0, result.shape[1], 256)]
    norms = np.linalg.norm(result, axis=1, keepdims=True)
    order = np.argsort(-norms[:, 0])[:96]
    train, test = (strongest(images, (result / norms)[order]) for images in (drawn.train_images, drawn.test_images))
    local = linear(train, drawn.train_labels).score(test, drawn.test_labels)
    dense = MLPClassifier((100, 50), batch_size=50, max_iter=10, tol=0, random_state=0)
    with pytest.warns(match="Maximum iterations"):
        dense.fit(pixels(drawn.train_images), drawn.train_labels)
    # It learns, but by heart.
    assert dense.score(pixels(drawn.train_images), drawn.train_labels) > 0.7
    assert local > 0.85 and local > dense.score(pixels(drawn.test_images), drawn.test_labels) + 0.25


def test_sketches_are_ten_of_one_size():
    halves = [[line.split() for line in half.splitlines()] for half in SKETCHES.strip().split("\n\n")]
    sketches = {"".join(rows) for half in halves for rows in zip(*half, strict=True)}
    assert len(sketches) == len(CLASSES)
    assert {len(sketch) for sketch in sketches} == {16 * 20} and set("".join(sketches)) == set("#o.")


@pytest.mark.parametrize("images", [119, 0, -1, 1_000_001, 600.0, "600", True, None])
def test_counts_that_are_refused(images):
    message = f"simulated images must be a whole number from 120 to 1000000, got {images!r}. Use simulated:7200."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        draw(images)


@pytest.mark.parametrize("seed", [-1, 0.0, "0", False, None])
def test_seeds_that_are_refused(seed):
    message = f"simulated images need a whole seed of 0 or more, got {seed!r}. Use simulated:120:0."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        draw(120, seed)
