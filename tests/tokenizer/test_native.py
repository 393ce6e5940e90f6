"""The compiled search: right codes, built once into the cache folder, and never missed where it cannot be built."""

import os
import shutil
import subprocess

import pytest
import torch

from wvq.tokenizer import native
from wvq.tokenizer.nearest import nearest_codes

HALF = """#!/bin/sh
if [ "$1" = --version ]; then echo "half 1.0"; exit 0; fi
for last; do :; done
echo half > "$last"
exit {code}
"""


@pytest.fixture
def _compiler():
    if not (os.environ.get("CXX") or any(map(shutil.which, ("c++", "g++", "clang++")))):
        pytest.skip("no C++ compiler")


@pytest.fixture
def _library(_compiler):
    if native.library() is None:
        pytest.skip("the compiled search is switched off by WVQ_NATIVE=0")


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache folder, and no library loaded before or after."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("WVQ_CACHE", str(folder))
    monkeypatch.setenv("WVQ_NATIVE", "1")
    native.library.cache_clear()
    yield folder
    native.library.cache_clear()


@pytest.fixture
def fake_compiler(monkeypatch, tmp_path):
    """A function that makes a compiler which writes a few bytes and ends with an exit code."""

    def make(code: int) -> None:
        file = tmp_path / "compiler"
        file.write_text(HALF.format(code=code))
        file.chmod(0o755)
        monkeypatch.setenv("CXX", str(file))

    return make


def draw(count, num_codes, dim):
    generator = torch.Generator().manual_seed(count + 1000 * num_codes + dim)
    return torch.randn(count, dim, generator=generator), torch.randn(num_codes, dim, generator=generator)


def float64_distances(features, codebook):
    return (features.double()[:, None] - codebook.double()[None]).square().sum(-1)


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize("num_codes", [1, 2, 15, 16, 17, 33, 250])
@pytest.mark.parametrize("count", [1, 3, 7, 8, 9, 200])
@pytest.mark.parametrize("dim", [1, 5, 32])
def test_finds_the_nearest_code_of_float64(count, num_codes, dim):
    features, codebook = draw(count, num_codes, dim)
    codes = native.search(features, codebook, codebook.square().sum(1) / 2)
    assert codes.dtype == torch.int64
    assert codes.shape == (count,)
    distances = float64_distances(features, codebook)
    lost = distances.gather(1, codes[:, None]).squeeze(1) - distances.min(1).values
    assert lost.max() < 1e-5
    assert (codes == distances.argmin(1)).float().mean() > 0.98


@pytest.mark.usefixtures("_library")
def test_reads_features_and_codes_that_are_not_contiguous():
    features, codebook = draw(60, 40, 6)
    features, codebook = features[::2, 1:5], codebook[1::3, 1:5]
    codes = native.search(features, codebook, codebook.square().sum(1) / 2)
    assert torch.equal(codes, float64_distances(features, codebook).argmin(1))


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [1, 8, 17, 100])
def test_threads_share_the_features_without_a_gap(count, threads):
    features, codebook = draw(count, 50, 4)
    torch.set_num_threads(threads)
    codes = native.search(features, codebook, codebook.square().sum(1) / 2)
    assert torch.equal(codes, float64_distances(features, codebook).argmin(1))


@pytest.mark.usefixtures("_compiler")
def test_is_built_once_into_the_cache_folder(cache, monkeypatch):
    path = native._built()
    assert list(cache.iterdir()) == [path]
    written = path.stat().st_mtime_ns
    commands, run = [], subprocess.run
    monkeypatch.setattr(
        subprocess, "run", lambda command, **options: commands.append(command) or run(command, **options)
    )
    assert native._built() == path
    assert [command[1:] for command in commands] == [["--version"]]
    assert path.stat().st_mtime_ns == written
    library = native.library()
    assert library._name == str(path)
    assert native.library() is library


def test_another_source_or_flag_is_another_file(cache, fake_compiler, monkeypatch, tmp_path):
    fake_compiler(0)
    paths = [native._built()]
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-g"))
    paths.append(native._built())
    source = tmp_path / "other.cpp"
    source.write_text(native.SOURCE.read_text() + "\n")
    monkeypatch.setattr(native, "SOURCE", source)
    paths.append(native._built())
    assert len(set(paths)) == 3
    assert sorted(cache.iterdir()) == sorted(paths)


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("WVQ_CACHE", raising=False)
    assert native.cache_folder() == tmp_path / "xdg" / "wvq"
    monkeypatch.setenv("WVQ_CACHE", str(tmp_path / "own"))
    assert native.cache_folder() == tmp_path / "own"


@pytest.fixture
def case():
    """Features, codes, and the codes found by whatever form this machine has."""
    features, codebook = draw(300, 100, 8)
    return features, codebook, nearest_codes(features, codebook)


def still_finds(case, monkeypatch):
    features, codebook, expected = case
    assert native.library() is None
    monkeypatch.setattr(native, "search", lambda *_: pytest.fail("the compiled search was called"))
    assert torch.equal(nearest_codes(features, codebook), expected)


def test_can_be_switched_off(case, cache, monkeypatch):
    monkeypatch.setenv("WVQ_NATIVE", "0")
    still_finds(case, monkeypatch)
    assert not cache.exists()


@pytest.mark.parametrize("compiler", [shutil.which("false") or "/bin/false", "no-such-compiler"])
def test_is_done_without_where_the_compiler_does_not_run(case, cache, monkeypatch, compiler):
    monkeypatch.setenv("CXX", compiler)
    still_finds(case, monkeypatch)
    assert not cache.exists()


def test_a_compiler_that_fails_leaves_no_file(case, cache, monkeypatch, fake_compiler):
    fake_compiler(1)
    still_finds(case, monkeypatch)
    assert list(cache.iterdir()) == []


def test_is_done_without_where_the_library_does_not_load(case, cache, monkeypatch, fake_compiler):
    fake_compiler(0)
    still_finds(case, monkeypatch)


def test_is_done_without_where_there_is_no_compiler(case, cache, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    still_finds(case, monkeypatch)


def test_is_done_without_where_the_cache_cannot_be_written(case, cache, monkeypatch, fake_compiler):
    fake_compiler(0)
    cache.write_text("a file where the folder should be")
    still_finds(case, monkeypatch)
