"""Changes of images against NumPy, one image at a time; models that see and average them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import InputError, Model, Variables
from jaxdl.nn import crop, cutout, flip, with_augmentation, with_flip_averaging

IMAGES = np.random.default_rng(0).integers(1, 256, (64, 8, 6, 3)).astype(np.uint8)
KEY = jax.random.key(3)
program = functools.cache(jax.jit)  # of a change
CHANGES = (flip, crop(2), cutout(3))


def echo(calls):
    def apply(variables, inputs, *, train, key=None, mask=None):
        calls.append((inputs, key, mask))
        return inputs.reshape(len(inputs), -1), {"kept": train}

    return Model(lambda key, inputs: Variables({}, {}), apply)


def test_an_image_is_mirrored_or_not():
    changed = np.asarray(program(flip)(KEY, IMAGES))
    same = [np.array_equal(new, old) for new, old in zip(changed, IMAGES, strict=True)]
    mirrored = [np.array_equal(new, old[:, ::-1]) for new, old in zip(changed, IMAGES, strict=True)]
    assert np.array_equal(np.logical_xor(same, mirrored), np.ones(64, bool))
    assert 16 < sum(mirrored) < 48


def test_a_crop_is_a_window_of_the_reflected_image():
    changed = np.asarray(jax.jit(crop(3))(KEY, IMAGES))
    places = set()
    for new, old in zip(changed, IMAGES, strict=True):
        padded = np.pad(old, ((3, 3), (3, 3), (0, 0)), "reflect")
        windows = [(i, j) for i in range(7) for j in range(7) if np.array_equal(padded[i : i + 8, j : j + 6], new)]
        assert len(windows) == 1
        places.update(windows)
    assert {i for i, _ in places} == {j for _, j in places} == set(range(7))


def test_a_crop_of_no_pixels_changes_nothing():
    np.testing.assert_array_equal(crop(0)(KEY, IMAGES), IMAGES)


def test_a_cutout_is_one_square():
    changed = np.asarray(jax.jit(cutout(4))(KEY, IMAGES))
    sizes = set()
    for new, old in zip(changed, IMAGES, strict=True):
        hidden = (new == 0).all(2)
        np.testing.assert_array_equal(new[~hidden], old[~hidden])
        rows, columns = np.flatnonzero(hidden.any(1)), np.flatnonzero(hidden.any(0))
        assert hidden[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert hidden.sum() == len(rows) * len(columns)
        sizes.add((len(rows), len(columns)))
    # Its centre may lie at any pixel, so that half of it at least is in the image.
    assert {rows for rows, _ in sizes} == {2, 3, 4} == {columns for _, columns in sizes}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_depends_on_the_key_alone_and_keeps_shape_and_dtype(change):
    once, again, other = (np.asarray(program(change)(key, IMAGES)) for key in (KEY, KEY, jax.random.key(4)))
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, other)
    assert (once.shape, once.dtype) == (IMAGES.shape, IMAGES.dtype)
    floats = program(change)(KEY, IMAGES.astype(np.float32) / 255)
    np.testing.assert_allclose(floats, once.astype(np.float32) / 255, rtol=1e-6)


@pytest.mark.parametrize("change", CHANGES)
def test_images_that_follow_change_nothing(change):
    others = np.concatenate([IMAGES[:50], IMAGES[49:50].repeat(14, 0)])
    alone, first, second = (program(change)(KEY, images) for images in (IMAGES[:50], IMAGES, others))
    np.testing.assert_array_equal(first[:50], alone)
    np.testing.assert_array_equal(second[:50], alone)


@pytest.mark.parametrize("make", [lambda: crop(-1), lambda: cutout(-1), lambda: crop(6)(KEY, IMAGES)])
def test_sizes_that_make_no_sense_are_refused(make):
    with pytest.raises(InputError, match=r"needs .*, got "):
        make()


def test_an_augmented_model_means_its_loop(meaning):
    calls = []
    model, changes = echo(calls), (flip, crop(2), cutout(3))
    mask = jnp.ones(64, bool)
    for train in (True, False):
        wanted = meaning(
            with_augmentation,
            model=model,
            changes=changes,
            variables=None,
            inputs=IMAGES,
            train=train,
            key=KEY,
            mask=mask,
            jax=jax,
        )
        outputs, stats = with_augmentation(model, *changes).apply(None, IMAGES, train=train, key=KEY, mask=mask)
        np.testing.assert_array_equal(outputs, wanted["outputs"])
        assert stats == wanted["stats"]
    assert all(given is mask and key is KEY for _, key, given in calls)
    np.testing.assert_array_equal(calls[-1][0], IMAGES)


def test_an_augmented_model_asks_for_a_key():
    with pytest.raises(InputError, match="needs a key in training"):
        with_augmentation(echo([]), flip).apply(None, IMAGES, train=True)
    assert with_augmentation(echo([]), flip).apply(None, IMAGES, train=False)[0].shape == (64, 144)


def test_predictions_are_averaged_over_the_mirror_image_and_training_is_not():
    model = with_flip_averaging(echo([]))
    floats = IMAGES.astype(np.float32)
    outputs, stats = model.apply(None, floats, train=False)
    np.testing.assert_allclose(outputs, ((floats + floats[:, :, ::-1]) / 2).reshape(64, -1))
    assert stats == {"kept": False}
    np.testing.assert_array_equal(model.apply(None, floats, train=True)[0], floats.reshape(64, -1))
