"""The search over sampling settings: the choice among trials, equal terms for all, its bounds, and what it reports."""

import json
from types import SimpleNamespace

import pytest
import torch

from tests.eval.conftest import CLASSES
from tests.stand_ins import FakePipeline, draw_pictures
from wvq.errors import ConfigError, DataError
from wvq.eval import tuning
from wvq.eval.tuning import CANDIDATES, Trial, choose, search_sampling
from wvq.generator.base.sampling_settings import SamplingSettings

HOT, COLD = SamplingSettings(), SamplingSettings(temperature=0.2)


class Artist(FakePipeline):
    """Draws pictures like the real ones, but blank ones at a low temperature."""

    def __init__(self, class_names=CLASSES, text_dim=0):
        super().__init__(class_names)
        self.generator.config.text_dim = text_dim
        self.seeds = []

    def __call__(self, class_labels=None, prompt=None, *, num_images, seed, temperature, **settings):
        super().__call__(class_labels, prompt, num_images=num_images, seed=seed, **settings)
        self.seeds.append((temperature, seed, num_images))
        pictures = draw_pictures(num_images, seed=100 + seed).float() / 127.5 - 1
        return SimpleNamespace(images=pictures if temperature == 1 else torch.ones_like(pictures))


def search(pipeline, data, candidates=(HOT, COLD), network=None, **options):
    return search_sampling(pipeline, data, candidates, network, progress=False, **options)


def trial(distance, blank=0.0, repeated=0.0):
    return Trial(HOT, distance, blank, repeated)


def test_the_lowest_distance_wins():
    trials = [trial(0.3), trial(0.2), trial(0.4)]
    chosen, reason = choose(trials, 0.0, "kd_x")
    assert chosen is trials[1]
    assert reason == "lowest kd_x of the settings with at most 2.0% blank samples (3 of 3)"


def test_a_setting_that_draws_blank_pictures_too_often_is_left_out():
    trials = [trial(0.3, blank=0.1), trial(0.1, blank=0.11)]
    chosen, reason = choose(trials, real_blank=0.085)
    assert chosen is trials[0]
    assert reason == "the only one of the settings with at most 10.5% blank samples (1 of 2)"


def test_where_all_draw_too_many_the_fewest_count():
    trials = [trial(0.1, blank=0.5), trial(0.3, blank=0.4), trial(0.2, blank=0.4)]
    chosen, reason = choose(trials, 0.0)
    assert chosen is trials[2]
    assert "lowest distance of the settings with the fewest blank samples (40.0%; all draw too many)" in reason


@pytest.mark.parametrize(
    ("blank", "repeated", "expected"),
    [
        ((0, 0, 0), (0.2, 0.05, 0.1), 1),
        ((0.02, 0.02, 0), (0, 0, 0.01), 2),
        ((0, 0, 0), (0.1, 0.1, 0.1), 0),
    ],
)
def test_ties_go_to_more_variety(blank, repeated, expected):
    trials = [*map(trial, (0.202, 0.207, 0.2), blank, repeated), trial(0.22)]
    chosen, reason = choose(trials, 0.0)
    assert chosen is trials[expected]
    assert reason.startswith("fewest blank and repeated samples among the lowest distance (within 5%)")


def test_a_tie_below_zero_is_one_of_the_same_share():
    assert choose([trial(-0.094), trial(-0.1)], 0.0)[0].distance == -0.1
    assert choose([trial(-0.096), trial(-0.1)], 0.0)[0].distance == -0.096


def test_all_settings_draw_the_same_conditions_from_the_same_seeds(labelled, projection):
    pipeline = Artist()
    found = search(pipeline, labelled, network=projection, seed=7, most_images=40)
    assert found.chosen.settings == HOT
    assert found.metric == "kd_projection"
    assert (found.num_images, found.num_reference) == (40, 30)
    rounds = [(7, 8), (15, 8), (23, 16), (39, 8)]
    assert pipeline.seeds == [(temperature, *drawn) for drawn in rounds for temperature in (1, 0.2)]
    assert pipeline.labels[:8] == pipeline.labels[8:16]
    assert pipeline.labels[32:48] == pipeline.labels[48:64]
    assert set(pipeline.labels) == {0, 1, 2}
    assert (found.trials[1].blank, found.trials[1].repeated) == (1, 0)
    assert pipeline.sampling == SamplingSettings(temperature=0.7)  # not changed


def test_the_same_search_gives_the_same_figures(labelled):
    first, second = (search(Artist(), labelled, most_images=16) for _ in range(2))
    assert first.trials == second.trials
    assert first.metric == "kd_pixels"


@pytest.mark.parametrize(
    ("settings", "seconds", "tried", "count"),
    [
        (8, 0, [0, 7], 8),
        (8, 40, [0, 3, 5, 7], 8),  # of the real pictures, as many as each setting has samples count as well
        (8, 72, [*range(8)], 8),
        (2, 200, [0, 1], 64),
        (1, 0, [0], 8),
    ],
)
def test_the_clock_bounds_the_samples_and_then_the_settings(settings, seconds, tried, count, labelled, monkeypatch):
    """One sample takes a second."""
    now = [0.0]

    class Slow(Artist):
        def __call__(self, *conditions, num_images, **options):
            now[0] += num_images
            return super().__call__(*conditions, num_images=num_images, **options)

    monkeypatch.setattr(tuning, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    candidates = [SamplingSettings(top_k=number) for number in range(settings)]
    found = search(Slow(), labelled, candidates, max_seconds=seconds)
    assert [one.settings.top_k for one in found.trials] == tried
    assert (found.num_images, found.num_candidates) == (count, settings)
    assert now[0] + min(count, 30) <= seconds or len(tried) <= tuning.FEWEST_SETTINGS
    left_out = f"; there was time to try {len(tried)} of {settings} settings, by {count} samples each"
    assert found.reason.endswith(left_out) == (len(tried) < settings)
    assert found.result()["num_candidates"] == settings


def test_conditions_are_those_that_the_model_has(labelled):
    classes = Artist(text_dim=8)
    search(classes, labelled, most_images=8)
    assert (len(classes.labels), classes.prompts) == (16, [])
    captions = Artist(class_names=(), text_dim=8)
    search(captions, labelled, most_images=8)
    assert captions.labels == []
    assert set(captions.prompts) <= set(labelled.captions)


def test_without_conditions_settings_that_differ_by_guidance_alone_are_one(pictures, picture_set):
    pipeline = Artist(class_names=())
    found = search(pipeline, picture_set(pictures(30)), CANDIDATES, most_images=4)
    settings = [one.settings for one in found.trials]
    assert {one.guidance_scale for one in settings} == {1}
    assert len(set(settings)) == len(settings) < len(CANDIDATES)


def test_what_is_reported(labelled):
    found = search(Artist(), labelled, most_images=8)
    head, rows = found.table()
    assert {len(row) for row in rows} == {len(head)}
    assert [row[-1] for row in rows] == ["chosen", "", "training pictures"]
    result = json.loads(json.dumps(found.result()))
    assert [one["chosen"] for one in result["trials"]] == [True, False]
    assert result["trials"][1]["temperature"] == 0.2
    assert result["trials"][1]["blank"] == 1
    assert result["trials"][0]["kd_pixels"] == found.chosen.distance
    assert result["reason"] == found.reason


def test_bad_searches_are_refused(labelled, pictures, picture_set):
    with pytest.raises(ConfigError, match="at least one setting"):
        search(Artist(), labelled, candidates=())
    with pytest.raises(ConfigError, match="4 samples of each"):
        search(Artist(), labelled, most_images=3)
    with pytest.raises(DataError, match="at least 4 training pictures that can be read, not 3"):
        search(Artist(), picture_set(pictures(3)))


def test_unreadable_pictures_are_left_out(labelled):
    labelled.broken = (0,)
    assert search(Artist(), labelled, most_images=32).num_reference == 29
