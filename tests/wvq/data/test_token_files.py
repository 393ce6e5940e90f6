"""Token files of other projects: what is read, and what is refused."""

import io
import json
import pickle
import tarfile

import numpy as np
import pytest

from wvq.data.token_files import find_token_files
from wvq.errors import DataError

CODES = np.arange(5 * 2 * 4).reshape(5, 2, 4)  # 5 pictures of 2 crops and 4 codes
LABELS = [0, 2, 1, 2, 0]


def npy(values):
    file = io.BytesIO()
    np.save(file, np.asarray(values))
    return file.getvalue()


def write_folders(root, codes=CODES, labels=LABELS, name="set256"):
    for kind, values in (("codes", [row[None] for row in codes]), ("labels", [[label] for label in labels])):
        folder = root / f"{name}_{kind}"
        folder.mkdir(parents=True)
        for number, value in enumerate(values):
            (folder / f"{number}.npy").write_bytes(npy(value))
    return root / f"{name}_codes"


def write_tar(file, members):
    with tarfile.open(file, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def write_lines(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def pictures(files, chosen=None):
    return list(files.read(np.ones(files.count, bool) if chosen is None else np.array(chosen)))


@pytest.fixture(params=["npy", "npy above", "tar", "jsonl"])
def files(request, tmp_path):
    """The same pictures in each kind of files."""
    if request.param == "jsonl":
        rows = [
            {"class_id": label, "tokens": crop.tolist()}
            for label, crops in zip(LABELS, CODES, strict=True)
            for crop in crops
        ]
        return find_token_files(write_lines(tmp_path / "a.jsonl", rows), num_crops=2)
    if request.param == "tar":
        members = [(f"./set/{LABELS[i]}/{i}.npy", npy(CODES[i].astype(np.uint16))) for i in range(5)]
        return find_token_files(write_tar(tmp_path / "a.tar", members))
    folder = write_folders(tmp_path)
    return find_token_files(folder if request.param == "npy" else tmp_path)


def test_every_picture_has_its_codes_and_its_class(files):
    assert files.count == 5
    read = pictures(files)
    assert [picture.label for picture in read] == LABELS
    assert all(np.array_equal(picture.codes, codes) for picture, codes in zip(read, CODES, strict=True))
    assert all(picture.codes.dtype == np.int64 for picture in read)


def test_only_chosen_pictures_are_read(files):
    read = pictures(files, [False, True, False, False, True])
    assert [picture.label for picture in read] == [2, 0]
    assert np.array_equal(read[1].codes, CODES[4])


def test_numbers_are_in_their_order_not_in_that_of_texts(tmp_path):
    codes = np.arange(12).reshape(12, 1, 1)
    files = find_token_files(write_folders(tmp_path, codes, list(range(12))))
    assert [picture.label for picture in pictures(files)] == list(range(12))


def test_folders_of_a_tar_name_its_classes(tmp_path):
    names = ["n02/b", "n01/a", "n02/c"]
    members = [(f"{name}.npy", npy(CODES[i])) for i, name in enumerate(names)]
    files = find_token_files(write_tar(tmp_path / "a.tar", [*members, ("n01/.hidden", b"x")]))
    assert files.class_names == ["n01", "n02"]
    assert [picture.label for picture in pictures(files)] == [1, 0, 1]


def test_pictures_are_found_by_number_and_by_name(tmp_path):
    for name in ("b/2.png", "a/1.png", "a/0.png", "b/0.png"):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / name).touch()
    for name in ("notes.txt", "a/.DS_Store", "a/00.txt"):  # the projects' own listing passes over them too
        (tmp_path / "pictures" / name).touch()
    numbered = find_token_files(write_folders(tmp_path))
    found = numbered.picture_files(["a/3.npy", "a/1.npy"], tmp_path / "pictures")
    assert [str(file.relative_to(tmp_path / "pictures")) for file in found] == ["b/2.png", "a/1.png"]
    with pytest.raises(DataError, match="holds 4 pictures in folders of classes, none of number 4"):
        numbered.picture_files(["a/4.npy"], tmp_path / "pictures")
    named = find_token_files(write_tar(tmp_path / "a.tar", [("x/b/2.npy", npy(CODES[0]))]))
    assert named.picture_files(["a.tar: x/b/2.npy"], tmp_path / "pictures") == [tmp_path / "pictures" / "b" / "2.png"]
    with pytest.raises(DataError, match=r"holds 0 files b/1\.\*, and not one"):
        named.picture_files(["a.tar: x/b/1.npy"], tmp_path / "pictures")
    flat = find_token_files(write_tar(tmp_path / "b.tar", [("b/2.npy", npy(CODES[0]))]))
    names = [picture.name for picture in pictures(flat)]
    assert flat.picture_files(names, tmp_path / "pictures") == [tmp_path / "pictures" / "b" / "2.png"]
    lines = find_token_files(write_lines(tmp_path / "a.jsonl", [{"class_id": 0, "tokens": [1]}]))
    with pytest.raises(DataError, match="does not say of which pictures its lines are; leave pictures out"):
        lines.picture_files(["a"], tmp_path / "pictures")


def _foreign(root):
    (write_folders(root) / "notes.txt").touch()


def _missing_label(root):
    write_folders(root)
    (root / "set256_labels" / "3.npy").unlink()


def _missing_codes(root):
    (write_folders(root) / "2.npy").unlink()


def _no_labels(root):
    (root / "set256_codes").mkdir()
    (root / "set256_codes" / "0.npy").write_bytes(npy(CODES[0]))


def _two_sets(root):
    write_folders(root)
    write_folders(root, name="other")


FOLDERS = [
    (_foreign, r"set256_codes/notes.txt is no token file \(0.npy, 1.npy, ...\); move it away"),
    (_missing_label, "set256_labels lacks 3.npy"),
    (_missing_codes, "set256_codes lacks 2.npy"),
    (_no_labels, "set256_labels is no folder; codes in NAME_codes need their classes in NAME_labels beside it"),
    (_two_sets, r"holds 2 folders of codes \(other_codes, ...\); give one"),
    (lambda root: None, "holds no token files: neither a folder NAME_codes beside NAME_labels, a .tar nor a .jsonl"),
]


@pytest.mark.parametrize(("prepare", "message"), FOLDERS)
def test_folders_that_do_not_fit_are_one_clear_line(tmp_path, prepare, message):
    prepare(tmp_path)
    with pytest.raises(DataError, match=message) as raised:
        find_token_files(tmp_path)
    assert "\n" not in str(raised.value)


ARRAYS = [
    (npy(CODES[0, 0]), r"must hold the codes \[crops, T\] of one picture, and has the shape \(4,\)"),
    (npy(CODES[:2]), r"must hold the codes \[crops, T\] of one picture, and has the shape \(2, 2, 4\)"),
    (npy(CODES[0] / 2), "must hold whole numbers"),
    (npy(np.zeros((0, 4), int)), r"must hold the codes .* has the shape \(0, 4\)"),
    (npy(CODES[0])[:-3], "is no array of numbers"),
    (b"version https://git-lfs.github.com/spec/v1", "is no array of numbers"),
    (pickle.dumps(CODES[0]), "is no array of numbers"),
    (b"PK\x03\x04", "is no array of numbers"),
    (npy(CODES[0])[:10] + npy(np.zeros(1))[10:].replace(b"(1,)", b"(9" + b"0" * 15 + b",)"), "is no array of numbers"),
    (npy(np.array([[None]])), "is no array of numbers"),
    (npy(CODES[0]).replace(b"(2, 4), }", b"(2, 4%s), }" % (b"0" * 15)), "is no array of numbers"),  # beyond any memory
    (npy(CODES[0]).replace(b"(2, 4), }", b"(2, 4%s), }" % (b"0" * 25)), "is no array of numbers"),
]


@pytest.mark.parametrize(("content", "message"), ARRAYS)
@pytest.mark.parametrize("kind", ["npy", "tar"])
def test_a_file_of_something_else_is_one_clear_line(tmp_path, kind, content, message):
    if kind == "npy":
        folder = write_folders(tmp_path)
        (folder / "1.npy").write_bytes(content)
        files = find_token_files(folder)
    else:
        files = find_token_files(write_tar(tmp_path / "a.tar", [("0/0.npy", npy(CODES[0])), ("0/1.npy", content)]))
    with pytest.raises(DataError, match=rf"1\.npy {message}"):
        pictures(files)


def test_a_folder_in_the_place_of_a_file_is_one_clear_line(tmp_path):
    folder = write_folders(tmp_path)
    (folder / "1.npy").unlink()
    (folder / "1.npy").mkdir()
    with pytest.raises(DataError, match=r"1\.npy cannot be read \(Is a directory\)"):
        pictures(find_token_files(folder))


@pytest.mark.parametrize("label", [-1, 10**12])
def test_a_class_out_of_range_is_one_clear_line(tmp_path, label):
    message = f"is of class {label}, and classes are numbered from 0 to 1,048,576 at most"
    with pytest.raises(DataError, match=message):
        pictures(find_token_files(write_folders(tmp_path, labels=[label] * len(CODES))))
    if label > 0:
        rows = [{"class_id": label, "tokens": [1]}]
        with pytest.raises(DataError, match=f"line 1 {message}"):
            pictures(find_token_files(write_lines(tmp_path / "a.jsonl", rows)))


def test_lines_may_begin_with_a_byte_order_mark(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", [ROW, ROW])
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert [picture.label for picture in pictures(find_token_files(file))] == [1, 1]


def test_a_label_of_several_pictures_is_one_clear_line(tmp_path):
    folder = write_folders(tmp_path)
    (tmp_path / "set256_labels" / "1.npy").write_bytes(npy([1, 2]))
    with pytest.raises(DataError, match=r"1.npy must hold the class of one picture, and has the shape \(2,\)"):
        pictures(find_token_files(folder))


TARS = [
    ([("a/b.txt", b"x")], "a/b.txt is no .npy file; take it out"),
    ([("b.npy", npy(CODES[0]))], "b.npy lies in no folder that names its class"),
    ([], "holds no .npy files"),
]


@pytest.mark.parametrize(("members", "message"), TARS)
def test_a_tar_of_something_else_is_one_clear_line(tmp_path, members, message):
    with pytest.raises(DataError, match=message):
        find_token_files(write_tar(tmp_path / "a.tar", members))


@pytest.mark.parametrize("size", [0, 300, 1_536, 2_500])
def test_a_tar_that_is_cut_short_is_one_clear_line(tmp_path, size):
    file = write_tar(tmp_path / "a.tar", [(f"0/{i}.npy", npy(CODES[i])) for i in range(2)])
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(DataError, match="is cut short, or no tar file"):
        find_token_files(file)


ROW = {"class_id": 1, "tokens": [1, 2]}
LINES = [
    ([ROW, {"tokens": [1]}], 1, r"line 2 is no {\"class_id\": ..., \"tokens\": \[...\]}"),
    ([ROW, ["a"]], 1, "line 2 is no"),
    ([ROW, {"class_id": 1.5, "tokens": [1]}], 1, "line 2 must hold a class_id and a list of tokens"),
    ([ROW, {"class_id": 1, "tokens": []}], 1, "line 2 must hold a class_id and a list of tokens"),
    ([ROW, {"class_id": 1, "tokens": ["a"]}], 1, "line 2 must hold a class_id and a list of tokens"),
    ([ROW, {"class_id": 1, "tokens": [[1, 2], [3]]}], 1, "line 2"),
    ([ROW, {"class_id": 2, "tokens": [1, 2]}], 2, "lines 1 to 2 are of several classes, and not the crops of one"),
    ([ROW, {"class_id": 1, "tokens": [1]}], 2, "lines 1 to 2 hold different numbers of tokens"),
    ([ROW] * 3, 2, "holds 3 lines, which are no pictures of 2 each; set num_crops"),
    ([], 1, "holds 0 lines"),
]


@pytest.mark.parametrize(("rows", "num_crops", "message"), LINES)
def test_lines_of_something_else_are_one_clear_line(tmp_path, rows, num_crops, message):
    file = write_lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=message) as raised:
        pictures(find_token_files(file, num_crops))
    assert "\n" not in str(raised.value)


def test_crops_are_counted_in_lines_alone(tmp_path):
    with pytest.raises(DataError, match=r"num_crops is for lines of JSON, and .*set256_codes is no .jsonl file"):
        find_token_files(write_folders(tmp_path), num_crops=2)
