"""Damaged configs, headers and indices of every kind: they load, or one of our own errors says why not."""

import contextlib
import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.stand_ins import PictureSet, ProjectionNetwork, draw_pictures
from tests.tiny import make_pipeline
from wvq.app.describe import describe
from wvq.data.codes import CodeDataset
from wvq.errors import WVQError
from wvq.eval.figures.comparison import Comparison
from wvq.eval.real.dataset import dataset_features
from wvq.eval.report.results import make_result, write_result
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.pipelines.sampling_job import sample_to_folder
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.processing import ImageProcessor

EXAMPLES = 150  # each; the same ones in every run
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 70)
    | st.sampled_from([2**31, 2**63, -(2**63), 1e308])
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(max_size=8)
    | st.sampled_from(["../../etc", "/", "sliced", "B", "wvq", "\0"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
LOADERS = {
    "tokenizer/config.json": lambda root: WassersteinVQModel.from_pretrained(root / "tokenizer"),
    "tokenizer/preprocessor_config.json": lambda root: ImageProcessor.from_pretrained(root / "tokenizer"),
    "generator/wvq_checksums.json": lambda root: ImageCodeTransformer.from_pretrained(root / "generator"),
    "generator/config.json": lambda root: ImageCodeTransformer.from_pretrained(root / "generator"),
    "model_index.json": ImageGenerationPipeline.from_pretrained,
    "codes/header.json": lambda root: CodeDataset(root / "codes", "train"),
    "samples/job.json": lambda root: describe(root / "samples"),
    "features/identity.json": lambda root: describe(root / "features"),
    "result.json": lambda root: describe(root / "result.json"),
}


@pytest.fixture(scope="module")
def root(tiny_tokenizer_dir, tiny_codes_dir, tmp_path_factory):
    """A pipeline with a code cache beside it."""
    folder = tmp_path_factory.mktemp("fuzz") / "root"
    make_pipeline(tiny_tokenizer_dir).save_pretrained(folder)
    shutil.copytree(tiny_codes_dir, folder / "codes")
    pipe = make_pipeline(tiny_tokenizer_dir)
    sample_to_folder(pipe, folder / "samples", num_images=1, progress=False)
    dataset_features(PictureSet(draw_pictures(4)), ProjectionNetwork(), "train", cache=folder, progress=False)
    next(folder.glob("train-*")).rename(folder / "features")
    settings = {"reference": {"kind": "train"}, "seed": 0}
    write_result(
        folder / "result.json", make_result("generation", Comparison({"fid": 2.0}, {}, 4, 4, 0), settings, ["few"])
    )
    return folder


@st.composite
def damages(draw):
    """A change to a JSON object: values replaced, keys lost, keys added; or other content altogether."""
    kind = draw(st.sampled_from(["replace", "replace", "remove", "add", "other", "text"]))
    return kind, draw(st.integers(0, 10**6)), draw(VALUES), draw(st.text(max_size=12))


def damaged(content: str, damage) -> str:
    kind, number, value, text = damage
    whole = json.loads(content)
    keys = list(whole)
    key = keys[number % len(keys)]
    if kind == "replace":
        whole[key] = value
    elif kind == "remove":
        del whole[key]
    elif kind == "add":
        whole[text] = value
    elif kind == "other":
        whole = value
    else:
        cut = number % len(content)
        return content[:cut] + text + content[cut + len(text) :]
    return json.dumps(whole)


@pytest.mark.parametrize("name", LOADERS)
def test_only_our_own_errors_come_out(root, name):
    file = root / name
    content = file.read_text()

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
    )
    @given(damages())
    def attempt(damage):
        file.write_text(damaged(content, damage), encoding="utf-8", errors="surrogatepass")
        for load in (LOADERS[name], lambda folder: describe(folder), lambda folder: describe(file.parent)):
            with contextlib.suppress(WVQError):
                load(root)

    try:
        attempt()
    finally:
        file.write_text(content)
    LOADERS[name](root)  # as it was, it loads
