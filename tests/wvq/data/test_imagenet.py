"""The names of ImageNet's classes are at the ids that published class models were trained with."""

from wvq.data.imagenet import imagenet_classes


def test_names_are_at_their_ids():
    names = imagenet_classes()
    assert len(set(names)) == 1_000
    assert [names[number] for number in (0, 1, 207, 360, 387, 974, 979, 999)] == [
        *("tench", "goldfish", "golden retriever", "otter", "lesser panda", "geyser", "valley", "toilet tissue")
    ]
