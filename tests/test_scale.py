"""The tables of docs/scale.md are those that the code works out."""

from pathlib import Path

from benchmarks.scale import SIZES, needed, plan, sharded, tables

DOC = Path(__file__).parents[1] / "docs" / "scale.md"


def test_the_documented_tables_are_up_to_date():
    text = DOC.read_text(encoding="utf-8")
    for table in tables().split("\n\n"):
        assert table in text, "run python -m benchmarks.scale and replace the tables"


def test_every_plan_fits_and_sharding_takes_less():
    from benchmarks.scale import MEMORY, ROOM, build

    for size in SIZES[:2]:
        model = build(size)
        micro, recomputed = plan(model, size, 8)
        assert needed(model, size, 8, micro, recomputed) <= ROOM * MEMORY
        assert needed(model, "3B", 8, micro, recomputed) < needed(model, size, 8, micro, recomputed)
    assert sharded("3B", 8)
    assert not sharded("3B", 1)
