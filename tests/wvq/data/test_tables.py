"""Tests of the column choice, the class ids and the captions."""

import datasets
import pytest

from wvq.data.tables import PictureTable, class_order, keep_classes, to_table
from wvq.errors import DataError
from wvq.settings.data import DataConfig

FILE = {"bytes": b"", "path": "x.png"}


def raw_table(features=None, **columns):
    columns = {"image": [FILE] * len(next(iter(columns.values()), [0])), **columns}
    return datasets.Dataset.from_dict(columns, features=None).cast_column("image", datasets.Image(decode=False))


def label_table(labels, groups=None):
    return PictureTable(datasets.Dataset.from_dict({"image": list(range(len(labels)))}), labels=labels, groups=groups)


class TestColumns:
    def test_class_label_order_is_kept(self):
        raw = raw_table(label=[0, 1, -1]).cast_column("label", datasets.ClassLabel(names=["zebra", "ant"]))
        table, names = to_table(raw, DataConfig())
        assert names == ("zebra", "ant")
        assert table.labels == [0, 1, -1]

    def test_class_label_of_another_name_is_found(self):
        raw = raw_table(animal=[0, 1]).cast_column("animal", datasets.ClassLabel(names=["ant", "bee"]))
        assert to_table(raw, DataConfig())[1] == ("ant", "bee")

    def test_text_and_number_labels_are_sorted(self):
        assert to_table(raw_table(label=["b", "a", None]), DataConfig())[0].labels == [1, 0, -1]
        table, names = to_table(raw_table(kind=[10, 9, 10]), DataConfig(label_column="kind"))
        assert names == ("9", "10")
        assert table.labels == [1, 0, 1]

    @pytest.mark.parametrize(
        ("names", "order"),
        [
            (["10", "2", "0", "1"], ["0", "1", "2", "10"]),
            (["10", "9", "08"], ["08", "9", "10"]),
            (["010", "9", "10"], ["9", "010", "10"]),
            (["10", "2", "x"], ["10", "2", "x"]),
            (["-1", "10", "2"], ["-1", "10", "2"]),
            (["1.5", "10", "2"], ["1.5", "10", "2"]),
            (["img10", "img2"], ["img10", "img2"]),
            (["²", "10", "2"], ["10", "2", "²"]),
            ([], []),
        ],
    )
    def test_whole_numbers_are_in_order_as_numbers(self, names, order):
        assert class_order(names) == order
        assert class_order({*names}) == order

    def test_labels_that_are_numbers_in_texts(self):
        table, names = to_table(raw_table(label=["10", "9", None]), DataConfig())
        assert names == ("9", "10")
        assert table.labels == [1, 0, -1]

    def test_ids_follow_given_names(self):
        table, names = to_table(raw_table(label=["a", "c"]), DataConfig(), class_names=("c", "b", "a"))
        assert table.labels == [2, 0]
        assert names == ("c", "b", "a")
        assert to_table(raw_table(label=["a"]), DataConfig(), class_names=())[0].labels is None
        with pytest.raises(DataError, match="class 'd' is in the validation split but not"):
            to_table(raw_table(label=["d"]), DataConfig(), class_names=("c", "b", "a"))

    def test_captions(self):
        assert to_table(raw_table(text=["x", None]), DataConfig())[0].captions == ["x", ""]
        assert to_table(raw_table(text=["x"], caption=["y"]), DataConfig())[0].captions == ["y"]
        several, _ = to_table(raw_table(alt=[["x", "y"], []]), DataConfig(caption_column="alt"))
        assert several.captions == ["x", ""]
        assert several.texts == [("x", "y"), ("",)]
        assert to_table(raw_table(captions=[["x", None, "y"]]), DataConfig())[0].texts == [("x", "y")]
        with pytest.raises(DataError, match=r"^data\.caption_column: 'text' must hold texts, not int"):
            to_table(raw_table(text=[1]), DataConfig())

    def test_rows_without_a_picture_are_left_out_and_told(self):
        raw = datasets.Dataset.from_dict({"jpg": [b"x", None, b"y", None], "caption": ["a", "b", "c", "d"]})
        with pytest.warns(UserWarning, match="^2 of 4 rows have no picture in 'jpg' and are left out$"):
            table, _ = to_table(raw, DataConfig())
        assert table.captions == ["a", "c"]
        assert [row["image"]["bytes"] for row in table.pictures] == [b"x", b"y"]

    def test_encoded_files_are_pictures(self):
        raw = datasets.Dataset.from_dict({"photo": [FILE], "label": ["a"]})
        assert to_table(raw, DataConfig())[0].pictures.column_names == ["image"]
        raw = datasets.Dataset.from_dict({"photo": [b"x"]})
        assert to_table(raw, DataConfig())[0].pictures[0]["image"]["bytes"] == b"x"

    def test_only_the_built_in_set_has_groups(self):
        raw = raw_table(group=["a"], flippable=[True])
        assert to_table(raw, DataConfig(path="openmoji"))[0].groups == ["a"]
        assert to_table(raw, DataConfig(path="elsewhere"))[0].groups is None

    @pytest.mark.parametrize("field", ["image_column", "label_column", "caption_column"])
    def test_unknown_column(self, field):
        with pytest.raises(DataError, match=f"{field}: the data has no column 'labl' .*label"):
            to_table(raw_table(label=["a"]), DataConfig(**{field: "labl"}))

    def test_ambiguous_or_wrong_columns(self):
        raw = datasets.Dataset.from_dict({"a": [FILE], "b": [FILE]})
        with pytest.raises(DataError, match=r"several columns hold pictures \(a, b\)"):
            to_table(raw, DataConfig())
        with pytest.raises(DataError, match="no column holds pictures; name one of x"):
            to_table(datasets.Dataset.from_dict({"x": [1]}), DataConfig())
        with pytest.raises(DataError, match=r"^data\.image_column: 'x' does not hold pictures"):
            to_table(datasets.Dataset.from_dict({"x": [1]}), DataConfig(image_column="x"))
        names = datasets.ClassLabel(names=["a"])
        raw = raw_table(fine=[0], coarse=[0]).cast_column("fine", names).cast_column("coarse", names)
        with pytest.raises(DataError, match=r"several columns hold classes \(fine, coarse\)"):
            to_table(raw, DataConfig())
        with pytest.raises(DataError, match=r"^data\.label_column: 'score' must hold class names"):
            to_table(raw_table(score=[0.5]), DataConfig(label_column="score"))


class TestKeepClasses:
    def test_order_is_as_asked(self):
        table, names = keep_classes(label_table([0, 1, 2, -1, 0]), ("a", "b", "c"), ["c", "a"])
        assert names == ("c", "a")
        assert table.labels == [1, 0, 1]
        assert table.pictures["image"] == [0, 2, 4]

    @pytest.mark.parametrize(
        ("names", "keep", "message"),
        [
            (("flags", "faces"), ["flag"], "no class 'flag' .did you mean \"flags\""),
            (("flags", "faces"), ["zzz"], "no class 'zzz' .there are: flags, faces"),
            (("flags",), ["flags", "flags"], "none of them twice"),
            (("flags",), [], "at least one class"),
            ((), ["flags"], "no class column"),
        ],
    )
    def test_bad_names(self, names, keep, message):
        with pytest.raises(DataError, match=message):
            keep_classes(label_table([0]), names, keep)

    def test_a_split_without_classes(self):
        with pytest.raises(DataError, match="no class column"):
            keep_classes(PictureTable(label_table([0]).pictures), ("a",), ["a"])
