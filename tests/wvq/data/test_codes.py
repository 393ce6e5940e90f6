"""The code cache: what is written comes back, in 2 or 4 bytes a code, and damage is one clear error."""

import json
import math
import pickle
import shutil
import tracemalloc
import weakref
from dataclasses import replace

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader

from wvq.data.code_tables import finish_table, row_features, write_shard
from wvq.data.codes import CodeDataset, CodeHeader
from wvq.errors import CacheError


def make_header(num_codes=10, num_images=6, num_crops=1, **fields):
    settings = {
        "tokenizer_hash": "0" * 64,
        "num_codes": num_codes,
        "grid": [2, 3],
        "image_size": 16,
        "crop_recipe": {"train": "center", "validation": "center"},
        "num_crops": num_crops,
        "class_names": ["a", "b"],
        "source": "somewhere",
        "num_images": {"train": num_images, "validation": 2},
        "has_captions": True,
        "library_version": "0",
        **fields,
    }
    return CodeHeader(**settings)


def make_codes(header, split="train", seed=0):
    rows = header.num_images[split] * (header.num_crops if split == "train" else 1)
    return torch.randint(0, header.num_codes, (rows, *header.grid), generator=torch.Generator().manual_seed(seed))


def write_rows(folder, batches, header):
    """One table in one file."""
    features, name = row_features(header.num_codes, header.sequence_length), "data-00000-of-00001.arrow"
    rows = write_shard(folder / name, batches, features)
    finish_table(folder, [name], features, f"{header.tokenizer_hash[:32]}-{rows}")


def write_cache(folder, header, codes=None, batch=4):
    for split in ("train", "validation"):
        rows = make_codes(header, split) if codes is None or split == "validation" else codes
        starts = range(0, len(rows), batch)
        batches = [
            {"codes": part, "label": [i % 2 for i in indices], "caption": [[f"row {i}"] for i in indices]}
            for part, indices in zip(rows.split(batch), (range(len(rows))[i : i + batch] for i in starts), strict=True)
        ]
        write_rows(folder / split, batches, header)
    header.save(folder)
    return folder


@pytest.fixture
def cache(tmp_path):
    return write_cache(tmp_path / "codes", make_header())


def test_round_trip(cache):
    dataset = CodeDataset(cache)
    assert len(dataset) == 6
    assert torch.equal(dataset.codes(range(6)), make_codes(make_header()).flatten(1))
    assert dataset.codes([5, 0]).dtype == torch.int64
    assert [dataset.label(i) for i in range(6)] == [0, 1, 0, 1, 0, 1]
    assert [dataset.caption(i) for i in range(6)] == [f"row {i}" for i in range(6)]
    assert dataset.header == make_header()
    assert dataset.header.sequence_length == 6
    item = dataset[3]
    assert torch.equal(item["codes"], make_codes(make_header())[3].flatten())
    assert (item["label"].item(), item["index"].item()) == (1, 3)
    assert len(CodeDataset(cache, "validation")) == 2


@pytest.mark.parametrize(
    ("num_codes", "width"), [(256, "uint16"), (65_536, "uint16"), (65_537, "uint32"), (2**31 - 1, "uint32")]
)
def test_the_largest_code_survives_in_the_smallest_type(tmp_path, num_codes, width):
    header = make_header(num_codes=num_codes)
    codes = make_codes(header)
    codes[0, 0, 0], codes[-1, -1, -1] = num_codes - 1, 0
    folder = write_cache(tmp_path / "codes", header, codes)
    table = datasets.load_from_disk(str(folder / "train"))
    assert table.features["codes"].feature.dtype == width
    assert torch.equal(CodeDataset(folder).codes(range(6)), codes.flatten(1))


def test_a_cache_of_several_shards_is_joined_in_order(tmp_path):
    header = make_header(num_images=11)
    folder = write_cache(tmp_path / "codes", header)
    table = datasets.load_from_disk(str(folder / "train"))
    table.save_to_disk(str(tmp_path / "sharded"), num_shards=3)
    shutil.rmtree(folder / "train")
    shutil.move(tmp_path / "sharded", folder / "train")
    assert torch.equal(CodeDataset(folder).codes(range(11)), make_codes(header).flatten(1))


def test_a_table_without_rows_can_be_written(tmp_path):
    write_rows(tmp_path / "rows", [], make_header())
    assert len(datasets.load_from_disk(str(tmp_path / "rows"))) == 0


def test_loads_in_batches_through_a_loader(cache):
    keys = [(10, 4), (11, 1), (12, 0)]
    (batch,) = DataLoader(CodeDataset(cache), batch_size=3, sampler=keys)
    assert torch.equal(batch["codes"], make_codes(make_header()).flatten(1)[[4, 1, 0]])
    assert batch["label"].tolist() == [0, 1, 0]
    assert batch["index"].tolist() == [4, 1, 0]


def test_several_captions_of_a_picture(tmp_path):
    header = make_header(num_images=2, num_crops=2)
    texts = [["a", "b"], ["a", "b"], ["c"], ["c"]]
    write_rows(tmp_path / "train", [{"codes": make_codes(header), "label": [0] * 4, "caption": texts}], header)
    header.save(tmp_path)
    dataset = CodeDataset(tmp_path)
    assert [dataset.texts(i) for i in range(2)] == [("a", "b"), ("c",)]
    assert [dataset.caption(i) for i in range(2)] == ["a", "c"]


def test_caches_with_one_caption_a_row_are_read(cache):
    table = datasets.load_from_disk(str(cache / "train"))
    columns = table.to_dict() | {"caption": [texts[0] for texts in table["caption"]]}
    features = datasets.Features({**table.features, "caption": datasets.Value("string")})
    shutil.rmtree(cache / "train")
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(cache / "train"))
    assert CodeDataset(cache).texts(4) == ("row 4",)


def test_captions_are_empty_where_the_cache_has_none(tmp_path):
    folder = write_cache(tmp_path / "codes", make_header(has_captions=False))
    assert CodeDataset(folder).caption(0) == ""


# ---- memory


def large_batches(count, rows=500):
    """Batches of 256 codes, and references to those that are still alive."""
    alive, lists = weakref.WeakSet(), []

    def batches():
        for _ in range(count):
            codes = torch.randint(0, 1000, (rows, 256))
            alive.add(codes)
            lists.append(len(alive))
            yield {"codes": codes, "label": [0] * rows, "caption": [("a",)] * rows}
            del codes

    return batches(), lists


LARGE = {"num_codes": 1000, "num_images": 20_000, "grid": [16, 16]}


def test_the_writer_holds_few_rows_at_a_time(tmp_path):
    batches, alive = large_batches(40)
    write_rows(tmp_path / "train", batches, make_header(**LARGE))
    assert max(alive) <= 2
    pieces = datasets.load_from_disk(str(tmp_path / "train")).data.column("codes").chunks
    assert [len(piece) for piece in pieces] == [16_500, 3_500]


@pytest.mark.parametrize("rows_a_piece", [1000, 20_000])
def test_the_reader_copies_nothing_but_the_rows_asked_for(tmp_path, rows_a_piece):
    header = make_header(**LARGE)
    batches, _ = large_batches(40)
    write_rows(tmp_path / "written", batches, header)
    table = datasets.load_from_disk(str(tmp_path / "written"))
    expected = np.stack(table.with_format("numpy")[[0, 999, 1000, 19_999, 7]]["codes"])
    pieces = datasets.Dataset(pa.Table.from_batches(table.data.to_batches(max_chunksize=rows_a_piece)))
    pieces.save_to_disk(str(tmp_path / "train"))  # `datasets` writes pieces of 1,000 rows
    header.save(tmp_path)
    pa.default_memory_pool().release_unused()
    arrow = pa.total_allocated_bytes()
    tracemalloc.start()
    dataset = CodeDataset(tmp_path)
    assert np.array_equal(dataset.codes([0, 999, 1000, -1, 7]).numpy(), expected)
    dataset.batch(range(100))
    dataset.unigram_entropy()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak + pa.total_allocated_bytes() - arrow < 3e6  # of 10 MB
    with pytest.raises(IndexError):
        dataset.codes([20_000])
    assert len(pickle.dumps(dataset)) < 500
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again.codes([5]), dataset.codes([5]))


# ---- crops


@pytest.fixture
def cropped(tmp_path):
    return write_cache(tmp_path / "codes", make_header(num_codes=10**6, num_crops=4))


def crop_of(dataset, key):
    rows = make_codes(dataset.header).flatten(1)
    index = key[1] if isinstance(key, tuple) else key
    return [torch.equal(rows[index * 4 + c], dataset[key]["codes"]) for c in range(4)].index(True)


def test_the_crop_follows_from_seed_and_position(cropped):
    dataset, again, other = CodeDataset(cropped), CodeDataset(cropped), CodeDataset(cropped, seed=1)
    assert len(dataset) == 6
    keys = [(position, position % 6) for position in range(60)]
    crops = [crop_of(dataset, key) for key in keys]
    assert set(crops) == {0, 1, 2, 3}
    assert crops == [crop_of(again, key) for key in keys]
    assert crops != [crop_of(other, key) for key in keys]
    assert len({crop_of(dataset, (position, 2)) for position in range(40)}) == 4


def test_an_index_alone_reads_the_first_crop(cropped):
    dataset = CodeDataset(cropped)
    assert [crop_of(dataset, index) for index in range(6)] == [0] * 6
    assert dataset.label(1) == 0  # row 4
    assert dataset.caption(5) == "row 20"


def test_validation_has_one_crop(cropped):
    dataset = CodeDataset(cropped, "validation")
    assert len(dataset) == 2
    assert torch.equal(dataset[(99, 1)]["codes"], make_codes(make_header(num_codes=10**6), "validation")[1].flatten())


# ---- entropy


def test_unigram_entropy_by_hand(tmp_path):
    header = make_header(num_codes=8, num_images=2)
    codes = torch.tensor([[[0, 0, 0], [0, 0, 0]], [[1, 1, 1], [2, 2, 2]]])
    dataset = CodeDataset(write_cache(tmp_path / "codes", header, codes))
    assert dataset.unigram_entropy() == pytest.approx(0.5 * math.log(2) + 2 * 0.25 * math.log(4))


def test_unigram_entropy_of_uniform_codes_is_log_k(tmp_path):
    header = make_header(num_codes=6, num_images=2)
    codes = torch.arange(6).repeat(2).view(2, 2, 3)
    assert CodeDataset(write_cache(tmp_path / "codes", header, codes)).unigram_entropy() == pytest.approx(math.log(6))


# ---- damage


def write_header(folder, **changes):
    values = json.loads((folder / "header.json").read_text())
    (folder / "header.json").write_text(json.dumps({**values, **changes}))


def drop_field(folder):
    values = json.loads((folder / "header.json").read_text())
    del values["grid"]
    (folder / "header.json").write_text(json.dumps(values))


def cut_table(folder):
    (file,) = (folder / "train").glob("*.arrow")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGES = {
    "no header": (lambda f: (f / "header.json").unlink(), r"is no code cache \(header.json is missing\)"),
    "header cut short": (lambda f: (f / "header.json").write_text('{"grid": [2,'), "cannot be read as JSON"),
    "header that is a list": (lambda f: (f / "header.json").write_text("[]"), "must hold a JSON object"),
    "header without a field": (drop_field, "lacks fields"),
    "unknown field": (
        lambda f: write_header(f, num_crop=2),
        r'unknown field "num_crop" \(did you mean "num_crops"\?\)',
    ),
    "no codes": (lambda f: write_header(f, num_codes=0), "num_codes must be an integer of at least 1, got 0"),
    "grid of one side": (lambda f: write_header(f, grid=[6]), r"grid must be two integers of at least 1, got \[6\]"),
    "grid of text": (lambda f: write_header(f, grid=["2", "3"]), "grid must be two integers"),
    "no crops": (lambda f: write_header(f, num_crops=0), "num_crops must be an integer of at least 1, got 0"),
    "one split only": (
        lambda f: write_header(f, num_images={"train": 6}),
        "num_images must be numbers of train",
    ),
    "classes of text": (lambda f: write_header(f, class_names="ab"), "class_names must be a list of names, got 'ab'"),
    "another number of rows": (
        lambda f: write_header(f, num_images={"train": 7, "validation": 2}),
        "holds 6 rows, not 7",
    ),
    "another number of crops": (lambda f: write_header(f, num_crops=2), "holds 6 rows, not 12"),
    "another grid": (lambda f: write_header(f, grid=[3, 3]), "layout must be a layout of codes that ends on the grid"),
    "another grid of an old cache": (
        lambda f: write_header(f, grid=[3, 3], layout=None),
        "holds 36 codes, not 9 in each of 6 rows",
    ),
    "another layout": (
        lambda f: write_header(f, layout={"kind": "product", "shapes": [[2, 3, 2]]}),
        "holds 36 codes, not 12 in each of 6 rows",
    ),
    "layout of an unknown kind": (
        lambda f: write_header(f, layout={"kind": "spiral", "shapes": [[2, 3]]}),
        "layout must be .*, got {'kind': 'spiral'",
    ),
    "no table": (lambda f: shutil.rmtree(f / "train"), "train cannot be read"),
    "no state": (lambda f: (f / "train" / "state.json").unlink(), "train cannot be read"),
    "state that is no object": (
        lambda f: (f / "train" / "state.json").write_text("[]"),
        r"train cannot be read \(.*state.json must hold a JSON object\)",
    ),
    "description that is no object": (
        lambda f: (f / "train" / "dataset_info.json").write_text("null"),
        r"train cannot be read \(.*dataset_info.json must hold a JSON object\)",
    ),
    "table cut short": (cut_table, "train cannot be read"),
    "table without codes": (
        lambda f: (
            shutil.rmtree(f / "train"),
            datasets.Dataset.from_dict({"label": [0] * 6}).save_to_disk(str(f / "train")),
        ),
        "train cannot be read",
    ),
}


@pytest.mark.parametrize("damaged", DAMAGES)
def test_a_damaged_cache_is_one_clear_error(cache, damaged):
    spoil, message = DAMAGES[damaged]
    spoil(cache)
    with pytest.raises(CacheError, match=message) as error:
        CodeDataset(cache)
    assert "\n" not in str(error.value)
    assert str(cache) in str(error.value)


def test_a_missing_folder_is_one_clear_error(tmp_path):
    with pytest.raises(CacheError, match="is no code cache"):
        CodeDataset(tmp_path / "none")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "codes: 6 training pictures, 2 held out; 2 classes; captions"),
        (
            {"num_images": 1200, "num_crops": 10, "class_names": ["a"], "has_captions": False},
            "codes: 1,200 training pictures in 10 crops each, 2 held out; 1 class; no captions",
        ),
        ({"class_names": []}, "codes: 6 training pictures, 2 held out; no classes; captions"),
    ],
)
def test_summary(fields, text):
    assert make_header(**fields).summary() == text


def test_header_round_trip(tmp_path):
    header = replace(make_header(), psnr_rgb={"train": 20.5, "validation": 19.0})
    header.save(tmp_path)
    assert CodeHeader.read(tmp_path) == header
