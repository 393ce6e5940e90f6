"""A result that tests of reports share."""

import pytest

from wvq.eval.figures.comparison import Comparison
from wvq.eval.report.results import make_result


@pytest.fixture
def result():
    metrics = {"fid": 5.5, "kid": 0.25, "fid_at_floor_n": 7.0}
    settings = {"seed": 3, "reference": {"kind": "train", "sha256": "ab"}, "prompts": None, "classes": "a|b"}
    settings["resize"] = None
    comparison = Comparison(metrics, {"fid": 1.25, "kid": 0.01}, 10, 10, 5)
    return make_result("generation", comparison, settings, ["few pictures"])
