"""Tests of the names that stand for a split, and of files of which only some have one."""

import pytest

from wvq.data.inventory import Inventory
from wvq.data.split_names import split_files, split_of, split_of_folder
from wvq.errors import DataError


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.parquet", "train"),
        ("TRAIN.parquet", "train"),
        ("train-00000-of-00003.parquet", "train"),
        ("training_1.parquet", "train"),
        ("train2017.tar", "train"),
        ("validation.v2.parquet", "validation"),
        ("valid-1.parquet", "validation"),
        ("Val_0.parquet", "validation"),
        ("dev.parquet", "validation"),
        ("test0.parquet", "test"),
        ("testing.parquet", "test"),
        ("data/val/0000.parquet", "validation"),
        ("Train/a/0000.parquet", "train"),
        ("train/test-0.parquet", "test"),
        ("imagenet1k-train-0000.tar", "train"),
        ("imagenet1k-validation-63.tar", "validation"),
        ("imagenet-val_003.tar", "validation"),
        ("pets-train-00000-of-00003.parquet", "train"),
        ("dev.2.tar", "validation"),
        ("my_train_set.parquet", None),
        ("pets-train.parquet", None),
        ("constraint-1.tar", None),
        ("TEST/00001.tar", "test"),
        ("trains.parquet", None),
        ("a/trainer/00000.parquet", None),
        ("contest.parquet", None),
        ("validated.parquet", None),
        ("device.parquet", None),
    ],
)
def test_split_of_a_file(name, split):
    assert split_of(name) == split


def test_split_of_a_folder_is_its_whole_name():
    assert [split_of_folder(name) for name in ("Training", "VAL", "train-1", "dev")] == [
        "train",
        "validation",
        None,
        "validation",
    ]


def test_files_without_names_of_splits_are_all_for_training():
    inventory = Inventory()
    assert split_files(["my_train_set.parquet", "a.parquet"], None, inventory) == {
        "train": ["a.parquet", "my_train_set.parquet"]
    }
    assert not inventory.remarks


def test_what_was_taken_as_which_split_is_told():
    inventory = Inventory()
    names = ["val-0.parquet", "train-1.parquet", "train-0.parquet"]
    splits = split_files(names, None, inventory)
    assert splits == {"train": ["train-0.parquet", "train-1.parquet"], "validation": ["val-0.parquet"]}
    assert inventory.remarks == ["train: train-0.parquet, train-1.parquet; validation: val-0.parquet"]


def test_a_mixture_is_refused_with_both_readings():
    names = ["train.parquet", "extra.parquet"]
    with pytest.raises(DataError, match=r"^extra\.parquet is named after no split, .*layout splits .*layout plain"):
        split_files(names, None, Inventory())
    inventory = Inventory()
    assert split_files(names, "splits", inventory) == {"train": ["train.parquet"]}
    assert inventory.passed_over == {".parquet": ["extra.parquet"]}
    assert split_files(names, "plain", Inventory()) == {"train": ["extra.parquet", "train.parquet"]}


def test_splits_named_at_other_places_are_not_all_trained_on():
    names = ["pets-train.parquet", "pets-test.parquet"]
    with pytest.raises(DataError, match=r"^pets-test\.parquet and pets-train\.parquet seem to be splits"):
        split_files(names, None, Inventory())
    assert len(split_files(names, "plain", Inventory())["train"]) == 2
    assert len(split_files(["pets-train-1.parquet", "pets-train-2.parquet"], None, Inventory())["train"]) == 2
