"""Reference features: content hash, order, subsets and the evaluation crop."""

import hashlib

import pytest
import torch

from wvq.errors import DataError
from wvq.eval.features.pictures import collect_features, evaluation_view, reference_features


def hash_of_hashes(images):
    return hashlib.sha256(b"".join(hashlib.sha256(image.numpy().tobytes()).digest() for image in images)).hexdigest()


def test_features_carry_the_identity_of_their_pictures(projection, pictures, picture_set):
    images = pictures(10)
    reference = reference_features(picture_set(images), projection, batch_size=4, progress=None)
    assert reference.description() == {
        "sha256": hash_of_hashes(images),
        "num_images": 10,
        "image_size": 16,
        "crop": "center",
    }
    torch.testing.assert_close(reference.features, projection.extract(images))
    assert reference.logits is None


def test_hash_depends_on_pixels_but_not_on_the_batch_size(projection, pictures, picture_set):
    images = pictures(6)
    changed = images.clone()
    changed[3, 0, 0, 0] ^= 1
    one, other, different = (
        reference_features(picture_set(data), projection, size, progress=None).sha256
        for data, size in ((images, 2), (images, 5), (changed, 2))
    )
    assert one == other != different


def test_a_subset_keeps_its_order(projection, pictures, picture_set):
    images = pictures(6)
    subset = reference_features(picture_set(images), projection, batch_size=2, indices=[4, 0, 5], progress=None)
    torch.testing.assert_close(subset.features, projection.extract(images[[4, 0, 5]]))
    assert subset.num_images == 3


def test_training_views_are_evaluated_under_the_centre_crop(projection, pictures, picture_set):
    images = pictures(4)
    augmented = picture_set(images, crop_recipe="random(0.8)+flip")
    assert evaluation_view(augmented).crop_recipe == "center"
    reference = reference_features(augmented, projection, progress=None)
    assert reference.crop_recipe == "center"
    torch.testing.assert_close(reference.features, projection.extract(images))


def test_logits_are_kept_and_progress_is_shown(projection_with_logits, pictures, picture_set, capsys):
    reference = reference_features(picture_set(pictures(5)), projection_with_logits, progress="real pictures")
    assert reference.logits.shape == (5, 5)
    assert "real pictures" in capsys.readouterr().err


def test_unreadable_pictures_are_left_out_and_counted(projection, pictures, picture_set):
    images = pictures(10)
    dataset = picture_set(images, broken=(2, 5))
    reference = reference_features(
        dataset, projection, batch_size=3, indices=[5, 4, 2, 9, 0, 1], progress=None, limit=3
    )
    assert (reference.indices, reference.num_images, reference.num_unreadable) == ([4, 9, 0], 3, 2)
    assert reference.sha256 == hash_of_hashes(images[[4, 9, 0]])
    assert reference.warnings == [
        "2 of 5 pictures cannot be read: 5.png (broken), 2.png (broken); left out of evaluation"
    ]


def test_too_many_unreadable_pictures_are_an_error(projection, pictures, picture_set):
    with pytest.raises(DataError, match=r"11 of 40 pictures cannot be read: .*too many"):
        reference_features(picture_set(pictures(40), broken=range(11)), projection, progress=None)


def test_an_empty_set_is_an_error(projection):
    with pytest.raises(DataError, match="no pictures"):
        collect_features(iter(()), projection, 0, "center")
