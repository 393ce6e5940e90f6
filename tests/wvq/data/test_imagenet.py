"""The names of ImageNet's classes are at the ids that published class models were trained with."""

from wvq.data.imagenet import folders_by_name, imagenet_classes


def test_names_are_at_their_ids():
    names = imagenet_classes()
    assert len(set(names)) == 1_000
    assert [names[number] for number in (0, 1, 207, 360, 387, 974, 979, 999)] == [
        *("tench", "goldfish", "golden retriever", "otter", "lesser panda", "geyser", "valley", "toilet tissue")
    ]


def test_all_folders_of_imagenet_are_named():
    folders = [f"n{number:08}" for number in range(1_000)]
    assert folders_by_name(folders) == imagenet_classes()
    for others in (folders[:-1], folders[::-1], [*folders[:-1], "pets"], []):
        assert folders_by_name(others) == others
