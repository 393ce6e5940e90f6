"""Sampling settings: ranges, what is kept of them, and that a field is all that a new setting takes."""

from dataclasses import asdict, dataclass, fields
from typing import get_type_hints

import numpy as np
import pytest
import torch

from tests.tiny import make_pipeline
from wvq.app import cli, commands
from wvq.checks import FLAG, Rule, interval, one_of
from wvq.errors import ConfigError
from wvq.eval import sweeps
from wvq.generator.base.sampling_settings import FIXED_ROWS, SamplingOptions, SamplingSettings, setting
from wvq.pipelines import folders
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.pipelines.sampling_job import read_settings, sample_to_folder
from wvq.settings.parser import Parser


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"guidance_scale": -0.5}, "guidance_scale must be at least 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be at least 0"),
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"top_k": -1}, "top_k must be an integer of at least 0"),
        ({"top_k": 2.5}, "top_k must be an integer of at least 0"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        ({"top_p": 1.1}, r"top_p must be in \(0, 1\]"),
        ({"temperature": "hot"}, "temperature must be at least 0"),
        ({"guidance_scale": None}, "guidance_scale must be at least 0"),
        ({"top_p": "most"}, r"top_p must be in \(0, 1\]"),
        ({"temperature": float("inf")}, "temperature must be at least 0"),
        ({"guidance_scale": float("inf")}, "guidance_scale must be at least 0"),
        ({"min_p": 1.5}, r"min_p must be in \[0, 1\]"),
        ({"guidance_schedule": "cosin"}, r'guidance_schedule must be one of .*"cosine"'),
        ({"guidance_schedule": 3}, "guidance_schedule must be one of"),
        ({"guidance_power": 0}, "guidance_power must be a number above 0"),
        ({"guidance_interval": (0.5, 0.5)}, "guidance_interval must be two shares"),
        ({"guidance_interval": (0.5, 1.5)}, "guidance_interval must be two shares"),
        ({"guidance_interval": 0.5}, "guidance_interval must be two shares"),
        ({"guidance_interval": (0.0, 0.5, 1.0)}, "guidance_interval must be two shares"),
        ({"window": -1}, "window must be an integer of at least 0"),
        ({"passes": -1}, "passes must be an integer of at least 0"),
        ({"deterministic": 1}, "deterministic must be true or false, got 1"),
    ],
)
def test_setting_out_of_range_names_the_field(setting, message):
    with pytest.raises(ConfigError, match=message):
        SamplingSettings(**setting)


def test_updated_settings_take_what_is_given_and_refuse_unknown_names():
    settings = SamplingSettings(top_k=5).updated(temperature=0.5, top_p=None)
    assert settings == SamplingSettings(top_k=5, temperature=0.5)
    with pytest.raises(ConfigError, match=r'"temprature" is no sampling setting.*"temperature"'):
        settings.updated(temprature=1.0)


def test_lists_of_files_become_tuples():
    assert SamplingSettings(guidance_interval=[0.0, 0.5]) == SamplingSettings(guidance_interval=(0.0, 0.5))


def test_how_deterministic_groups_pictures():
    on = SamplingSettings(deterministic=True)
    assert (on.fixed_rows, SamplingSettings().fixed_rows) == (FIXED_ROWS, None)
    assert on.updated(window=4).fixed_rows == 1
    assert [on.whole_batch(n) for n in (1, FIXED_ROWS, FIXED_ROWS + 1)] == [FIXED_ROWS, FIXED_ROWS, 2 * FIXED_ROWS]
    assert SamplingSettings().whole_batch(3) == 3


def test_jobs_and_results_of_earlier_versions_go_on():
    """A setting of a later version is in an identity only where it is not at its default."""
    first = {"guidance_scale": 1.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    first |= {"guidance_schedule": "constant", "guidance_power": 2.0, "guidance_interval": [0.0, 1.0], "window": 0}
    assert SamplingSettings().identity() == first
    assert SamplingSettings(deterministic=True).identity() == first | {"deterministic": True}
    assert SamplingSettings(passes=8).identity() == first | {"passes": 8}


# ---- a new setting


def test_keyword_arguments_are_the_fields():
    hints = {name: kind | None for name, kind in get_type_hints(SamplingSettings).items()}
    assert get_type_hints(SamplingOptions) == hints
    assert list(SamplingOptions.__annotations__) == [field.name for field in fields(SamplingSettings)]


ORDERS = ("rows", "spiral")


@dataclass(frozen=True)
class Wider(SamplingSettings):
    """With a setting of each form that an option can have."""

    typical_p: float = setting(1.0, "in (0, 1]; 1 is off", interval("(0, 1]"), "in (0, 1] (1 is off)", later=True)
    order: str = setting("rows", "rows or spiral", one_of(("rows", "spiral")), "rows or spiral", ("rows", "spiral"))
    crop: tuple[int, int] = setting((0, 0), "two numbers", Rule("two", lambda two: len(two) == 2, tuple), "two numbers")
    draft: bool = setting(False, "quick pictures", FLAG, "true or false")


GIVEN = {"typical_p": 0.5, "order": "spiral", "crop": (1, 2), "draft": True}


@pytest.fixture
def wider(monkeypatch):
    for module in (cli, commands, folders, sweeps):
        monkeypatch.setattr(module, "SamplingSettings", Wider)
    return Wider()


@pytest.mark.parametrize("command", ["sample", "evaluate generation"])
def test_the_command_line_has_an_option_for_a_new_field(command, wider):
    parser = Parser()
    cli.COMMANDS[command].add_arguments(parser)
    assert "in (0, 1]; 1 is off (type:" in " ".join(parser.format_help().split())
    values = parser.parse(["folder", "--typical_p=0.5", "--order", "spiral", "--crop", "1", "2", "--draft"])
    given = commands.sampling_of(values)
    assert {name: value for name, value in given.items() if value is not None} == GIVEN | {"crop": [1, 2]}
    assert wider.updated(**given) == Wider(**GIVEN)
    with pytest.raises(ConfigError, match=r"typical_p must be in \(0, 1\] \(1 is off\), got 2.0"):
        wider.updated(typical_p=2.0)
    with pytest.raises(ConfigError, match=r'order must be rows or spiral \(did you mean "spiral"\?\)'):
        wider.updated(order="spirl")


def test_a_call_a_job_and_a_saved_pipeline_have_a_new_field(tiny_tokenizer_dir, wider, tmp_path, monkeypatch):
    plain = make_pipeline(tiny_tokenizer_dir)
    parts = (plain.tokenizer, plain.generator)
    used = []
    draw = ImageGenerationPipeline.draw

    def watched_draw(pipe, request, seeds, settings, *rest, **options):
        used.append(settings)
        return draw(pipe, request, seeds, settings, *rest, **options)

    monkeypatch.setattr(ImageGenerationPipeline, "draw", watched_draw)
    pipe = ImageGenerationPipeline(*parts, sampling=wider)
    pipe(num_images=1, seed=0, **GIVEN)
    (picture,) = sample_to_folder(pipe, tmp_path / "job", num_images=1, progress=False, **GIVEN)
    assert used == [Wider(**GIVEN)] * 2
    assert read_settings(picture).items() >= (GIVEN | {"crop": [1, 2]}).items()
    ImageGenerationPipeline(*parts, sampling=Wider(**GIVEN)).save_pretrained(tmp_path / "pipe")
    assert ImageGenerationPipeline.from_pretrained(tmp_path / "pipe").sampling == Wider(**GIVEN)
    assert Wider(**GIVEN).identity().items() >= (GIVEN | {"crop": [1, 2]}).items()
    assert wider.identity().keys() == SamplingSettings().identity().keys() | {"order", "crop", "draft"}
    assert asdict(Wider(**GIVEN)).items() >= GIVEN.items()


def test_a_sweep_takes_a_new_field(wider):
    assert sweeps.parse_sweep("typical_p=0.25:0.75:0.25") == ("typical_p", [0.25, 0.5, 0.75])


def test_numbers_of_numpy_and_torch_are_numbers():
    settings = SamplingSettings(top_k=np.int64(5), temperature=np.float32(0.5), window=torch.tensor(4))
    assert settings == SamplingSettings(top_k=5, temperature=0.5, window=4)
    assert settings.identity() == SamplingSettings(top_k=5, temperature=0.5, window=4).identity()
