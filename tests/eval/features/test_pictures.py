"""Sets of pictures: their hashes, parts and the view that evaluations take."""

import hashlib

import torch

from tests.stand_ins import features_of
from wvq.eval.features.pictures import evaluation_view, picture_digests


def test_each_picture_has_the_hash_of_its_pixels(pictures):
    images = pictures(3)
    assert picture_digests(images) == [hashlib.sha256(image.numpy().tobytes()).digest() for image in images]
    assert picture_digests(images.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)) == picture_digests(images)


def test_a_part_has_its_own_features_and_the_identity_of_the_whole(projection_with_logits, pictures):
    whole = features_of(pictures(6), projection_with_logits)
    for rows in (slice(2, 5), torch.tensor([4, 0, 5])):
        part = whole.part(rows)
        assert torch.equal(part.features, whole.features[rows])
        assert torch.equal(part.logits, whole.logits[rows])
        assert part.spatial is None
        assert (part.num_images, part.sha256) == (3, whole.sha256)


def test_training_views_are_evaluated_under_the_centre_crop(pictures, picture_set):
    data = picture_set(pictures(2))
    assert evaluation_view(data) is data
    assert evaluation_view(picture_set(pictures(2), crop_recipe="random(0.8)+flip")).crop_recipe == "center"
