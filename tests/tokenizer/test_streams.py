"""Every command on a stream: training and resuming, export, evaluation, alone and as two processes."""

import copy
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import datasets
import pytest
import torch

from tests.processes import run_ranks
from tests.shards import sample, write_shards, write_tar
from tests.tiny import TINY_TOKENIZER, make_pipeline
from wvq.data.codes import CodeDataset, CodeHeader
from wvq.data.dataset import ImageDataset, load_images
from wvq.errors import CacheError
from wvq.eval.features.networks import default_feature_network
from wvq.eval.generation import evaluate_generation
from wvq.eval.recipes import GenerationEvaluation, ReconstructionEvaluation
from wvq.eval.run import run_generation_evaluation, run_reconstruction_evaluation
from wvq.files.names import FINGERPRINT_NAME
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.tokenizer import export, export_work
from wvq.tokenizer.export import export_codes
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.recipes import ExportRecipe
from wvq.tokenizer.train import train_tokenizer
from wvq.training.tracking import read_log


@pytest.fixture(autouse=True)
def _own_tables(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four training shards of 40 pictures in all, and two validation shards of 9."""
    root = tmp_path_factory.mktemp("shards")
    write_shards(root / "train", [12, 9, 15, 4])
    write_shards(root / "val", [5, 4])
    return root


def streamed(folder, **changes):
    return {"path": str(folder), "stream": True, "shuffle_buffer": 8, **changes}


class TestTraining:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_resumed_run_ends_as_the_uninterrupted_one(self, tmp_path, folder, tiny_tokenizer_recipe, workers):
        train = {"images": 96, "save_every": 32, "evaluate_every": 32, "log_every": 16, "num_workers": workers}
        data = streamed(folder, crop="random", flip=True)
        whole = tiny_tokenizer_recipe(tmp_path / "whole", train=train, data=data, model={"dropout": 0.1})
        result = train_tokenizer(whole)
        assert (result["images"], result["num_images"], result["unreadable_pictures"]) == (96, 9, 0)
        resumed = copy.deepcopy(whole)
        resumed.out = str(tmp_path / "cut")
        shutil.copytree(whole.out, resumed.out)
        shutil.rmtree(tmp_path / "cut" / "training" / "checkpoints" / "000000000096")
        (tmp_path / "cut" / "model.safetensors").unlink()
        train_tokenizer(resumed, resume=True)
        a, b = WassersteinVQModel.from_pretrained(whole.out), WassersteinVQModel.from_pretrained(resumed.out)
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))

        def losses(run):
            return [(row["images"], row.get("loss"), row.get("psnr_rgb")) for row in read_log(run / "training")]

        assert losses(tmp_path / "cut") == losses(tmp_path / "whole")

    def test_ten_crops_are_spread(self, tmp_path, folder, tiny_tokenizer_recipe):
        data, train = streamed(folder, crop="ten"), {"images": 32, "log_every": 16}
        assert train_tokenizer(tiny_tokenizer_recipe(tmp_path / "run", train=train, data=data))["images"] == 32


@pytest.fixture
def export_recipe(tmp_path, folder, tiny_tokenizer_dir, tiny_data):
    def make(name, **fields):
        data = tiny_data(**{"folder": folder, **fields.pop("data", {})})
        return ExportRecipe(out=str(tmp_path / name), tokenizer=str(tiny_tokenizer_dir), data=data, **fields)

    return make


def rows(cache, split):
    table = CodeDataset(cache, split)
    keys = range(len(table) * table.num_crops)
    captions = [table.caption(number) for number in range(len(table))]
    return table.codes(keys).tolist(), table.labels.tolist(), captions


class TestExport:
    @pytest.mark.parametrize(("crop", "num_crops"), [("center", 1), ("ten", 10)])
    def test_codes_are_those_at_rest(self, export_recipe, crop, num_crops):
        crops = {"num_crops": num_crops, "batch_size": 16}
        headers = [
            export_codes(export_recipe(str(stream), data={"stream": stream, "crop": crop}, **crops))
            for stream in (True, False)
        ]
        caches = [export_recipe(str(stream)).out for stream in (True, False)]
        for split in ("train", "validation"):
            assert rows(caches[0], split) == rows(caches[1], split)
        one, other = ({**asdict(header), "psnr_rgb": None} for header in headers)  # of other rows, those of one shard
        assert one == other
        assert headers[0].num_images == {"train": 40, "validation": 9}
        assert [(Path(cache) / FINGERPRINT_NAME).exists() for cache in caches] == [False, True]

    def test_random_crops_are_the_same_each_time(self, export_recipe):
        data = {"stream": True, "crop": "random", "flip": True, "min_crop_fraction": 0.5}
        for name, batch_size, workers in (("a", 4, 0), ("b", 32, 2)):
            export_codes(export_recipe(name, data=data, num_crops=3, batch_size=batch_size, num_workers=workers))
        codes = [rows(export_recipe(name).out, "train")[0] for name in "ab"]
        assert codes[0] == codes[1]
        assert codes[0][0::3] != codes[0][1::3] != codes[0][2::3]

    def test_a_stopped_export_goes_on_from_whole_shards(self, export_recipe, monkeypatch):
        recipe = export_recipe("cut", data={"stream": True})
        write = export_work.ExportWork.write

        def stop_at_the_third(self, split, number, batches, left_out):
            if number == 2:
                raise KeyboardInterrupt
            write(self, split, number, batches, left_out)

        monkeypatch.setattr(export_work.ExportWork, "write", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            export_codes(recipe)
        written = []
        monkeypatch.setattr(
            export_work.ExportWork, "write", lambda self, *args: written.append(args[:2]) or write(self, *args)
        )
        export_codes(recipe)
        assert written == [("train", 2), ("train", 3), ("validation", 0), ("validation", 1)]
        whole = export_recipe("whole", data={"stream": True})
        export_codes(whole)
        assert rows(recipe.out, "train") == rows(whole.out, "train")

    def test_unreadable_pictures_have_no_rows(self, export_recipe, folder, tmp_path):
        spoilt = shutil.copytree(folder, tmp_path / "spoilt")
        file = spoilt / "train" / "00002.tar"
        content = bytearray(file.read_bytes())
        place = content.find(b"\x89PNG", len(content) // 2)
        content[place : place + 8] = b"nothing!"
        file.write_bytes(content)
        recipe = export_recipe("spoilt-codes", data={"folder": spoilt, "stream": True}, num_crops=2)
        with pytest.warns(
            UserWarning, match=r"1 of 40 pictures cannot be read: 00002.tar/\d+.png .*no rows in the train"
        ):
            header = export_codes(recipe)
        assert (header.num_images["train"], header.unreadable_pictures["train"]) == (39, 1)
        captions = rows(recipe.out, "train")[2]
        left = [n for n in range(40) if f"picture {n}" not in captions]
        assert len(left) == 1
        assert 21 <= left[0] < 36

    def test_rows_out_of_order_are_found(self, export_recipe, monkeypatch):
        encoded = export._encoded

        def swapped(batches, texts, tokenizer):
            return [{**rows, "codes": rows["codes"].flip(0)} for rows in encoded(batches, texts, tokenizer)]

        monkeypatch.setattr(export, "_encoded", swapped)
        with pytest.raises(CacheError, match="the rows are out of order or damaged"):
            export_codes(export_recipe("swapped", data={"stream": True}))

    def test_a_shard_without_pictures_is_an_empty_file(self, export_recipe, folder, tmp_path):
        data = shutil.copytree(folder, tmp_path / "one class")
        write_tar(data / "train" / "00001.tar", [sample(n) for n in (0, 3, 6)])
        recipe = export_recipe("one", data={"folder": data, "stream": True, "classes": ["1"]})
        header = export_codes(recipe)
        assert header.num_images == {"train": 4 + 5 + 1, "validation": 3}
        labels = [label for shard in (12, 15, 4) for label in [0] * (shard // 3)]
        assert rows(recipe.out, "train")[1] == labels


class TestEvaluation:
    def test_figures_are_those_at_rest(self, tmp_path, folder, tiny_tokenizer_dir, tiny_data):
        results = []
        for stream in (True, False):
            data = tiny_data(folder, stream=stream)
            out = tmp_path / f"{stream}.json"
            recipe = ReconstructionEvaluation(
                tokenizer=str(tiny_tokenizer_dir), data=data, out=str(out), feature_network="efficientnet_lite0"
            )
            results.append(run_reconstruction_evaluation(recipe, progress=False))
            assert "The first pictures." in out.with_suffix(".html").read_text() or not stream
        for name in ("metrics", "floor", "num_images", "num_tokens", "num_unreadable"):
            assert results[0][name] == pytest.approx(results[1][name])
        assert results[0]["settings"]["reference"] == results[1]["settings"]["reference"]

    def test_samples_are_compared_with_the_first_pictures(self, tmp_path, folder, tiny_tokenizer_dir, tiny_data):
        pipeline = tmp_path / "pipeline"
        make_pipeline(tiny_tokenizer_dir, class_names=["0", "1", "2"]).save_pretrained(pipeline)
        recipe = GenerationEvaluation(
            pipeline=str(pipeline),
            data=tiny_data(folder, stream=True),
            num_images=6,
            classes="reference",
            feature_network="efficientnet_lite0",
            out=str(tmp_path / "result.json"),
        )
        result = run_generation_evaluation(recipe, progress=False)
        first = load_images(tiny_data(folder)).train
        known = ImageDataset(first.table.select(range(12)), first.class_names, first.settings)
        network = default_feature_network()
        expected = evaluate_generation(
            ImageGenerationPipeline.from_pretrained(pipeline), known, 6, classes="reference", feature_network=network
        )
        assert result["metrics"] == pytest.approx(expected["metrics"])
        assert result["settings"]["reference"]["num_images"] == 12


def launched(*command, world=2):
    for done in run_ranks(["-m", "wvq", *command], world):
        assert done.returncode == 0, done.stderr[-4000:]


class TestTwoProcesses:
    def test_training_resumes_exactly(self, tmp_path, folder):
        data = [f"--data.path={folder}", "--data.stream=true", "--data.image_size=16", "--data.shuffle_buffer=8"]
        loop = ["--train.images=96", "--train.save_every=48", "--train.log_every=16"]
        command = ["train-tokenizer", *TINY_TOKENIZER, *data, *loop]
        launched(*command, f"--out={tmp_path / 'whole'}")
        cut = shutil.copytree(tmp_path / "whole", tmp_path / "cut")
        shutil.rmtree(cut / "training" / "checkpoints" / "000000000096")
        (cut / "model.safetensors").unlink()
        single = shutil.copytree(cut, tmp_path / "single")
        launched(*command, f"--out={cut}", "--resume")
        a, b = WassersteinVQModel.from_pretrained(tmp_path / "whole"), WassersteinVQModel.from_pretrained(cut)
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
        (one,) = run_ranks(["-m", "wvq", *command, f"--out={single}", "--resume"], 1)
        assert one.returncode == 2
        assert "of a stream over 2 processes, and there are 1; resume with as many as before" in one.stderr

    def test_codes_and_figures_are_those_of_one(self, tmp_path, folder, tiny_tokenizer_dir):
        data = [f"--data.path={folder}", "--data.stream=true", "--data.image_size=16", "--data.crop=random"]
        network = "--feature-network=efficientnet_lite0"
        for world in (1, 2):
            codes = [f"--tokenizer={tiny_tokenizer_dir}", "--num_crops=2", f"--out={tmp_path / f'codes-{world}'}"]
            launched("export-codes", *codes, *data, world=world)
            out = f"--out={tmp_path / f'{world}.json'}"
            launched("evaluate", "reconstruction", str(tiny_tokenizer_dir), *data, network, out, world=world)
        for split in ("train", "validation"):
            assert rows(tmp_path / "codes-1", split) == rows(tmp_path / "codes-2", split)
        assert CodeHeader.read(tmp_path / "codes-1") == CodeHeader.read(tmp_path / "codes-2")
        one, two = (json.loads((tmp_path / f"{world}.json").read_text()) for world in (1, 2))
        assert two["num_images"] == one["num_images"] == 9
        assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-3)
        assert two["settings"]["reference"] == one["settings"]["reference"]
