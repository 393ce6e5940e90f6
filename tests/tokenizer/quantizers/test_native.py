"""The compiled search: right codes, built once into a folder of the user's own, and never missed where it cannot be."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import torch

from wvq.tokenizer.quantizers import native
from wvq.tokenizer.quantizers.nearest import nearest_codes

PLANTED = """
#include <cstdio>
extern "C" void wvq_nearest() {}
__attribute__((constructor)) static void run() { if (FILE* file = std::fopen(MARKER, "w")) std::fclose(file); }
"""
NOBODY = 65534
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
    """Empty cache folders, WVQ_CACHE and the user's, and no library loaded before or after."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("WVQ_CACHE", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("WVQ_NATIVE", "1")
    native.library.cache_clear()
    yield folder
    native.library.cache_clear()


@pytest.fixture
def built():
    """A function that gives the file of the library, built if need be."""

    def build() -> Path:
        compiler = native._compiler()
        folder = native.private_folder(next(native.code_folders("native")))
        return native._built(folder, native._file_name(compiler), compiler)

    return build


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
def test_is_built_once_into_a_private_folder(cache, built, monkeypatch):
    path = built()
    assert list(cache.rglob("*.so")) == [path]
    assert [stat.S_IMODE(entry.stat().st_mode) for entry in (path.parent, path)] == [0o700, 0o700]
    written = path.stat().st_mtime_ns
    commands, run = [], subprocess.run
    monkeypatch.setattr(
        subprocess, "run", lambda command, **options: commands.append(command) or run(command, **options)
    )
    library = native.library()
    assert [command[1:] for command in commands] == [["--version"]]
    assert path.stat().st_mtime_ns == written
    assert library._name == str(path)
    assert native.library() is library


def test_another_source_or_flag_is_another_file(cache, built, fake_compiler, monkeypatch, tmp_path):
    fake_compiler(0)
    paths = [built()]
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-g"))
    paths.append(built())
    source = tmp_path / "other.cpp"
    source.write_text(native.SOURCE.read_text() + "\n")
    monkeypatch.setattr(native, "SOURCE", source)
    paths.append(built())
    assert len(set(paths)) == 3
    assert sorted(cache.rglob("*.so")) == sorted(paths)


def open_to_all(cache):
    cache.chmod(0o777)


def open_inside(cache):
    (cache / "native").chmod(0o777)


def of_another(cache):
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder to another user")
    os.chown(cache / "native", NOBODY, NOBODY)


def file_of_another(cache):
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to another user")
    os.chown(next((cache / "native").iterdir()), NOBODY, NOBODY)


def linked_file(cache):
    file = next((cache / "native").iterdir())
    file.rename(cache / file.name)
    file.symlink_to(cache / file.name)


@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize("share", [open_to_all, open_inside, of_another, file_of_another, linked_file])
def test_what_others_can_have_put_there_is_not_loaded(cache, share, tmp_path):
    marker = tmp_path / "ran"
    source = tmp_path / "planted.cpp"
    source.write_text(PLANTED)
    name = native._file_name(native._compiler())
    (cache / "native").mkdir(parents=True, mode=0o700)
    command = [*native._compiler(), "-shared", "-fPIC", f'-DMARKER="{marker}"', str(source)]
    subprocess.run([*command, "-o", str(cache / name)], check=True)
    (cache / "native" / name).write_bytes((cache / name).read_bytes())
    share(cache)
    library = native.library()
    assert not marker.exists()
    assert Path(library._name).parent == tmp_path / "user" / "wvq-native"


@pytest.mark.usefixtures("_compiler")
def test_a_private_library_is_loaded(cache, built, monkeypatch, tmp_path):
    """The case against: the test above does not pass because nothing is ever loaded from there."""
    path = built()
    monkeypatch.setattr(native, "_built", lambda folder, name, compiler: folder / name)
    assert native.library()._name == str(path)


@pytest.mark.usefixtures("_compiler")
def test_without_a_private_folder_each_process_compiles_its_own(cache, monkeypatch, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv("WVQ_CACHE", str(shared / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared / "b"))
    library = native.library()
    assert library.wvq_nearest
    assert not list(shared.rglob("*.so"))
    assert not Path(library._name).exists()


@pytest.mark.usefixtures("_compiler")
def test_a_user_without_a_home_has_the_search(cache, monkeypatch):
    monkeypatch.delenv("WVQ_CACHE")
    monkeypatch.setattr("wvq.files.user_folders._user_cache", lambda: None)
    assert native.library() is not None


@pytest.mark.usefixtures("_compiler")
def test_a_damaged_library_is_no_hindrance(cache, built):
    built().write_bytes(b"cut")
    assert native.library().wvq_nearest


WRAPPER = '#!/bin/sh\nexec "$@"\n'


@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize("form", ["{wrapper} {compiler}", "'{blanks}' {compiler}", "{linked}", "", "  "])
def test_a_compiler_may_have_arguments_and_blanks(cache, form, monkeypatch, tmp_path):
    compiler = shutil.which(native._compiler()[0])
    named = {"wrapper": tmp_path / "wrap", "blanks": tmp_path / "my tools" / "wrap", "compiler": compiler}
    named["linked"] = tmp_path / "my tools" / "c++"
    for file in (named["wrapper"], named["blanks"]):
        file.parent.mkdir(exist_ok=True)
        file.write_text(WRAPPER)
        file.chmod(0o755)
    named["linked"].symlink_to(compiler)
    monkeypatch.setenv("CXX", form.format(**named))
    assert native.library() is not None


def test_an_unbalanced_quote_is_no_compiler(case, cache, monkeypatch):
    monkeypatch.setenv("CXX", "g++ 'x")
    still_finds(case, monkeypatch)


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
    assert list((cache / "native").iterdir()) == []


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
    (cache.parent / "user").write_text("another")
    still_finds(case, monkeypatch)
