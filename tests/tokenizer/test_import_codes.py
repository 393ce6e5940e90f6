"""Caches of other projects' token files: rows, header, the comparison with pictures, and a generator trained on one."""

import numpy as np
import pytest
import torch

from tests.wvq.data.test_token_files import npy, write_folders, write_lines, write_tar
from wvq.app.describe import describe
from wvq.data.codes import CodeDataset, CodeHeader
from wvq.data.pictures import read_picture
from wvq.data.pixels import center_crop, to_pixels
from wvq.errors import CacheError, ConfigError, DataError
from wvq.generator.models import load_generator
from wvq.generator.recipes import GeneratorRecipe
from wvq.generator.train import train_generator
from wvq.settings.train import TrainConfig
from wvq.tokenizer.import_codes import import_codes
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.recipes import ImportCodesRecipe


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir):
    return WassersteinVQModel.from_pretrained(tiny_tokenizer_dir)


@pytest.fixture(scope="module")
def pictures(picture_folder):
    """Files of the pictures, class by class."""
    return [file for folder in sorted(picture_folder.iterdir()) for file in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def tokens(tokenizer, pictures):
    """Codes (60, 2, 16) of the pictures' centres and their mirror images, and classes, as another project has them."""
    pixels = torch.stack([to_pixels(center_crop(read_picture(file), 16)) for file in pictures])
    codes = torch.stack([tokenizer.encode(version).codes.flatten(1) for version in (pixels, pixels.flip(-1))], 1)
    names = sorted({file.parent.name for file in pictures})
    return codes.numpy(), [names.index(file.parent.name) for file in pictures]


@pytest.fixture
def folders(tmp_path, tokens):
    """Folder of such codes."""
    return write_folders(tmp_path / "theirs", *tokens)


@pytest.fixture
def recipe(tmp_path, folders, tiny_tokenizer_dir):
    """A function that makes the recipe of such codes, some fields changed."""

    def make(**changes) -> ImportCodesRecipe:
        fields = {"source": str(folders), "out": str(tmp_path / "codes"), "tokenizer": str(tiny_tokenizer_dir)}
        return ImportCodesRecipe(**{**fields, "validation_fraction": 0.2, **changes})

    return make


def test_rows_are_the_pictures_codes(recipe, tokens, tokenizer, tmp_path):
    header = import_codes(recipe())
    assert header == CodeHeader.read(tmp_path / "codes")
    assert header.num_images == {"train": 48, "validation": 12}
    assert (header.num_crops, header.num_codes, header.grid, header.image_size) == (2, 32, [4, 4], 16)
    assert header.class_names == ["0", "1", "2"]
    assert tokenizer.made(header.tokenizer_hash)
    codes, labels = tokens
    seen = []
    for split in ("train", "validation"):
        rows = CodeDataset(tmp_path / "codes", split)
        for index in range(len(rows)):
            crops = rows.codes(range(index * rows.num_crops, (index + 1) * rows.num_crops)).numpy()
            seen += [n for n in range(60) if n not in seen and np.array_equal(codes[n, : len(crops)], crops)][:1]
            assert rows.label(index) == labels[seen[-1]]
    assert len(seen) == 60


def test_the_split_follows_from_the_seed(recipe, tmp_path):
    labels = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        import_codes(recipe(out=str(tmp_path / name), seed=seed))
        labels[name] = CodeDataset(tmp_path / name, "validation").labels.tolist()
    assert labels["a"] == labels["b"] != labels["c"]


@pytest.mark.parametrize("kind", ["tar", "jsonl"])
def test_other_files_give_the_same_rows(recipe, tokens, tmp_path, kind):
    codes, labels = tokens
    if kind == "tar":
        members = [(f"{'abc'[label]}/{number}.npy", npy(codes[number])) for number, label in enumerate(labels)]
        changes = {"source": str(write_tar(tmp_path / "a.tar", members))}
    else:
        rows = [
            {"class_id": label, "tokens": row}
            for crops, label in zip(codes.tolist(), labels, strict=True)
            for row in crops
        ]
        changes = {"source": str(write_lines(tmp_path / "a.jsonl", rows)), "num_crops": 2}
    header = import_codes(recipe(out=str(tmp_path / "other"), **changes))
    assert header.class_names == (["a", "b", "c"] if kind == "tar" else ["0", "1", "2"])
    import_codes(recipe())
    for split in ("train", "validation"):
        first, second = (CodeDataset(tmp_path / name, split) for name in ("codes", "other"))
        assert torch.equal(first.codes(range(len(first))), second.codes(range(len(second))))
        assert first.labels.tolist() == second.labels.tolist()


def test_of_ten_crops_that_of_the_centre_comes_first(recipe, tmp_path):
    codes = np.arange(3 * 10 * 16).reshape(3, 10, 16) % 32
    codes[:, :, 0] = np.arange(10)
    source = write_folders(tmp_path / "ten", codes, [0, 1, 0])
    import_codes(recipe(source=str(source)))
    train, held_out = (CodeDataset(tmp_path / "codes", split) for split in ("train", "validation"))
    assert train.codes(range(10))[:, 0].tolist() == [4, 0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert held_out.codes([0])[0, 0] == 4


def test_without_a_tokenizer_the_settings_say_what_the_codes_are(recipe, tmp_path):
    header = import_codes(recipe(tokenizer=None))
    assert (header.tokenizer_hash, header.num_codes, header.grid, header.image_size) == ("", 16_384, [4, 4], 64)
    changes = {"num_codes": 40, "grid": [2, 8], "image_size": [32, 128]}
    header = import_codes(recipe(tokenizer=None, out=str(tmp_path / "other"), **changes))
    assert (header.num_codes, header.grid, header.image_size) == (40, [2, 8], [32, 128])
    assert "not named" in describe(tmp_path / "other")


def test_names_of_classes_come_from_a_file(recipe, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("Kreis\r\nKreuz\nQuadrat\nleer\n", encoding="utf-8")
    assert import_codes(recipe(class_names=str(names))).class_names == ["Kreis", "Kreuz", "Quadrat", "leer"]


@pytest.mark.parametrize("kind", ["numbers", "folders"])
def test_a_thousand_classes_are_those_of_imagenet(recipe, tmp_path, kind):
    codes = np.zeros((1_000, 1, 16), int)
    if kind == "numbers":
        source = write_folders(tmp_path / "thousand", codes, list(range(1_000)))
    else:
        source = write_tar(tmp_path / "a.tar", [(f"n{10**7 + i}/{i}.npy", npy(codes[i])) for i in range(1_000)])
    names = import_codes(recipe(source=str(source))).class_names
    assert (len(names), names[0], names[999]) == (1_000, "tench", "toilet tissue")


# ---- pictures


def test_codes_are_compared_with_their_pictures(recipe, picture_folder, capsys):
    header = import_codes(recipe(pictures=str(picture_folder)))
    assert capsys.readouterr().out.startswith("100.0% of the codes of 32 pictures are those that ")
    assert header.psnr_rgb["train"] > 10


def test_crops_of_larger_pictures_are_recognised(recipe, picture_folder, pictures, tokenizer, tokens, tmp_path, capsys):
    images = [center_crop(read_picture(file), 17).crop((0, 0, 16, 16)) for file in pictures]
    codes = tokenizer.encode(torch.stack([to_pixels(image) for image in images])).codes.flatten(1)[:, None].numpy()
    source = write_folders(tmp_path / "larger", codes, tokens[1])
    import_codes(recipe(source=str(source), pictures=str(picture_folder)))
    assert capsys.readouterr().out.startswith("100.0% of the codes")


def test_codes_of_other_pictures_are_refused(recipe, picture_folder, tokens, tmp_path):
    codes, labels = tokens
    source = write_folders(tmp_path / "mixed", codes[::-1], labels)
    with pytest.raises(CacheError, match=r"% of the codes of 32 pictures are those .* of other pictures, or another"):
        import_codes(recipe(source=str(source), pictures=str(picture_folder)))
    assert not (tmp_path / "codes").exists()


# ---- training


def test_a_generator_trains_on_an_imported_cache(recipe, tiny_tokenizer_dir, tokenizer, tmp_path):
    import_codes(recipe())
    sizes = {"hidden_size": 32, "num_layers": 1, "num_heads": 2}
    train = TrainConfig(images=64, batch_size=16, learning_rate=5e-3, log_every=16)
    fields = {"codes": str(tmp_path / "codes"), "tokenizer": str(tiny_tokenizer_dir), "model": sizes, "train": train}
    result = train_generator(GeneratorRecipe(out=str(tmp_path / "run"), **fields), tokenizer)
    assert result["loss"] < np.log(32)
    config = load_generator(tmp_path / "run" / "generator").config
    assert (config.class_names, config.tokenizer_hash) == (["0", "1", "2"], tokenizer.codes_hash())
    import_codes(recipe(tokenizer=None, num_codes=32, out=str(tmp_path / "nameless")))
    fields["codes"] = str(tmp_path / "nameless")
    with pytest.raises(CacheError, match="was imported without its tokenizer; import it again with --tokenizer /"):
        train_generator(GeneratorRecipe(out=str(tmp_path / "other"), **fields), tokenizer)


# ---- what is refused


def test_a_cache_is_whole_or_absent(recipe, folders, tmp_path):
    (folders / "59.npy").write_bytes(npy(np.zeros((1, 2, 15), int)))
    with pytest.raises(DataError, match=r"59.npy has 2 crops of 15 codes, and .*\.npy 2 of 16; all pictures"):
        import_codes(recipe())
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
    (tmp_path / "codes").mkdir()
    (tmp_path / "codes" / "notes").touch()
    with pytest.raises(ConfigError, match="already holds files"):
        import_codes(recipe())


PICTURES = [
    (np.full((1, 2, 16), 32), {}, "has codes from 32 to 32, not below 32; another tokenizer made them"),
    (np.full((1, 2, 16), -1), {}, "has codes from -1 to -1, not below 32"),
    (np.full((1, 2, 16), 50), {"tokenizer": None, "num_codes": 40}, "has codes from 50 to 50, not below 40; give num"),
    (np.zeros((1, 3, 16), int), {}, "has 3 crops of 16 codes, and"),
]


@pytest.mark.parametrize(("codes", "changes", "message"), PICTURES)
def test_a_picture_that_does_not_fit_is_one_clear_line(recipe, folders, codes, changes, message):
    (folders / "59.npy").write_bytes(npy(codes))
    with pytest.raises(DataError, match=rf"59\.npy {message}"):
        import_codes(recipe(**changes))


SETTINGS = [
    ({"pictures": "somewhere", "tokenizer": None}, ConfigError, "^pictures are compared .*; give tokenizer too"),
    ({"num_codes": 8}, ConfigError, "^num_codes comes from the tokenizer; leave one of them out"),
    ({"validation_fraction": 0.0}, ConfigError, r"^validation_fraction must be in \(0, 1\)"),
    ({"tokenizer": None, "grid": [4, 5]}, DataError, "has 16 codes, which make no grid of 4 x 5; give grid"),
    ({"class_names": "missing.txt"}, ConfigError, "^class_names: .*missing.txt cannot be read"),
    ({"pictures": "nowhere"}, DataError, "^pictures: nowhere holds no folders of classes"),
]


@pytest.mark.parametrize(("changes", "kind", "message"), SETTINGS)
def test_settings_that_do_not_fit_are_one_clear_line(recipe, changes, kind, message):
    with pytest.raises(kind, match=message) as raised:
        import_codes(recipe(**changes))
    assert "\n" not in str(raised.value)


def test_a_cache_lies_outside_of_the_codes_and_of_the_pictures(recipe, folders, picture_folder):
    with pytest.raises(ConfigError, match=r"^out: .* lies in the folder of the codes, "):
        import_codes(recipe(out=str(folders / "cache")))
    with pytest.raises(ConfigError, match=r"^out: .* lies in the folder of the pictures, "):
        import_codes(recipe(pictures=str(picture_folder), out=str(picture_folder / "cache")))


def test_classes_without_a_name_are_one_clear_line(recipe, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("a\nb\n")
    with pytest.raises(DataError, match=r"is of class 2, and there are names of 2 classes"):
        import_codes(recipe(class_names=str(names)))


def test_a_class_out_of_all_bounds_is_one_clear_line(recipe, folders):
    (folders.parent / "set256_labels" / "7.npy").write_bytes(npy([2**40]))
    with pytest.raises(DataError, match=r"7\.npy is of class 1099511627776, and classes are numbered from 0"):
        import_codes(recipe())


def test_codes_of_another_length_than_the_tokenizers_are_one_clear_line(recipe, tmp_path):
    source = write_folders(tmp_path / "short", np.zeros((3, 2, 9), int), [0, 0, 1])
    with pytest.raises(DataError, match=r"\d\.npy has 9 codes, and the tokenizer in .* makes 16"):
        import_codes(recipe(source=str(source)))
    one = write_folders(tmp_path / "one", np.zeros((1, 2, 16), int), [0])
    with pytest.raises(DataError, match="holds one picture; a cache needs one to train on and one to hold out"):
        import_codes(recipe(source=str(one)))
