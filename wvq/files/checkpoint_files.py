"""Reads the weights of other projects' checkpoints: torch's files in both forms, and safetensors in one file or more.

Nothing of a file is run. Weights are mapped, not read: memory holds what is copied out of them.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import sys
import warnings
import zipfile
from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from wvq.checks import PATH
from wvq.errors import CheckpointError, ConfigError, first_line
from wvq.files.atomic import read_json
from wvq.files.user_folders import expand_user

LEVELS = ("model", "ema", "module", "state_dict")  # names under which a file may hold its weights; the first is taken
_WRAPPERS = ("module.", "_orig_mod.")  # what parallel training and compilation put before each name
_HALF = (".incomplete", ".part", ".partial", ".crdownload", ".download", ".aria2", ".tmp")
_AGAIN = "download it again"
_OTHER = "check that it is the right file"
# Values that a pickle makes by a call, and that weights may lie beside.
_CALLED = {f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")}
_CALLED |= {"numpy.dtype", "numpy.ndarray", "pathlib.PosixPath", "pathlib.WindowsPath"}
# What OmegaConf's settings say of the types of their values; a file may have other names for them, of Python 2.
_TYPES = {"typing.Any", *(f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "str", "tuple"))}
_DEFAULTS = "collections.defaultdict"
_TOLERATED = {"argparse.Namespace", _DEFAULTS} | _TYPES | _CALLED  # of Python and of torch; torch knows its own
_GUARDED = sys.stdlib_module_names | {"__builtin__", "torch"}
_MOST_HEADER = 10**8  # bytes, of safetensors, whose files begin with their number; no other form does
_PICKLES = 5  # of a file in torch's earlier form, before the weights


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a checkpoint.

    Attributes:
        weights: mapped tensors by name, without what parallel training and compilation put before the names.
        level: the name under which the file holds them; None where it holds nothing else.
        other_levels: further names under which it holds weights.
        files: the files that they come from; more than one where they are in shards.
    """

    weights: dict[str, torch.Tensor]
    level: str | None
    other_levels: tuple[str, ...]
    files: tuple[Path, ...]


def read_checkpoint(path: str | Path, ema: bool = False) -> Checkpoint:
    """Read a checkpoint of another project.

    Args:
        path: a file of torch (.pt, .pth, .ckpt, .bin), of safetensors, or the index (.json) of safetensors in shards.
        ema: take the averaged weights of a file that holds both, under "ema".

    Raises:
        ConfigError: averaged weights are asked for, and there are none.
        CheckpointError: the file is missing, is not all there, is something else, or would run code.
    """
    file = expand_user(path, "checkpoint", PATH)
    head = _checked_head(file)
    if file.suffix == ".json":
        weights, files = _read_shards(file)
        found: object = weights
    elif head[8:9] == b"{" and int.from_bytes(head[:8], "little") < _MOST_HEADER:
        found, files = _read_safetensors(file), (file,)
    elif head[:4] == b"PK\x03\x04" or head[:1] == b"\x80":
        found, files = _read_torch(file, is_zip=head[:2] == b"PK"), (file,)
    else:
        raise CheckpointError(f"{file} is no checkpoint of torch or safetensors; {_OTHER}")
    level, others, weights = _weights_in(file, found, ema)
    _check_weights(file, weights)
    return Checkpoint(_unwrapped(weights), level, others, files)


def _checked_head(file: Path) -> bytes:
    """The first bytes of a file that is there and may hold weights."""
    if file.suffix in _HALF:
        raise CheckpointError(f"{file} is a download that has not ended; go on with it, or {_AGAIN}")
    if file.is_dir():
        raise CheckpointError(f"{file} is a folder; give the file of the weights in it")
    try:
        with file.open("rb") as opened:
            head = opened.read(512)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file; check the path") from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror})") from error
    if not head:
        raise CheckpointError(f"{file} is empty; {_AGAIN}")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{file} is a Git LFS pointer, not the weights; run git lfs pull, or {_AGAIN}")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{file} is a web page, not the weights: its download was refused; {_AGAIN}")
    return head


# ---- torch


class _StandIn(type):
    """Makes classes in the place of those that a pickle names: of each an instance holds state alone, and none runs."""

    def __call__(cls, *args: object) -> object:
        """In a pickle, a function that is called.

        Raises:
            UnpicklingError: always.
        """
        raise pickle.UnpicklingError(f"it calls {cls.__name__}")


def _stand_in(name: str) -> type:
    # Torch's reader fills no dict but those of these types.
    return _StandIn(name, (), {"__new__": lambda cls, *args: OrderedDict()})


class _Value:
    """In the place of a value that a pickle makes by a call of numpy or pathlib."""

    def __init__(self, *args: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _no_defaults(*args: object) -> dict:
    """In the place of a dict with defaults: one without."""
    return OrderedDict()


def _read_torch(file: Path, is_zip: bool) -> object:
    """What a file of torch holds, with stand-ins for objects of classes; no code that it names is run."""
    if is_zip and not zipfile.is_zipfile(file):
        raise CheckpointError(f"{file} is cut off: its end is missing; {_AGAIN}")
    names: list[str] = []
    try:
        names = _globals(file, is_zip)
        stand_ins = {
            name: _Value if name in _CALLED else _stand_in(name) for name in {*names, *_TYPES} if _has_stand_in(name)
        }
        known: list[Any] = [(kind, name) for name, kind in (stand_ins | {_DEFAULTS: _no_defaults}).items()]
        with torch.serialization.safe_globals(known), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        if named := re.search(r"(?:GLOBAL|it calls) (\S+)", str(error)):
            reason = f"names {named[1][:200]}, which is no part of weights"
        else:  # the reason comes behind torch's advice
            cause = first_line(pickle.UnpicklingError(str(error).split("WeightsUnpickler error:")[-1]))
            reason = f"cannot be read as weights alone ({cause}; it names {', '.join(names)[:200] or 'nothing'})"
        raise CheckpointError(
            f"{file} {reason}: nothing of it was run. Take a file of weights alone, from a source that you trust"
        ) from error
    except Exception as error:  # of many kinds, whatever a damaged file makes of them
        raise CheckpointError(f"{file} is damaged or no file of torch ({first_line(error)}); {_AGAIN}") from error


def _has_stand_in(name: str) -> bool:
    """Whether what a pickle names has a stand-in: classes of other libraries, and a few of Python."""
    return name in _TOLERATED or name.split(".")[0] not in _GUARDED


def _globals(file: Path, is_zip: bool) -> list[str]:
    """Dotted names of the classes and functions in a file of torch; it is taken apart, and nothing of it is made.

    Raises:
        ValueError, zipfile.BadZipFile: it is damaged.
    """
    with ExitStack() as stack:
        opened: Any = stack.enter_context(file.open("rb"))
        if is_zip:
            archive = stack.enter_context(zipfile.ZipFile(opened))
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if not pickles:
                raise ValueError("it holds no data.pkl")
            # A few bytes could become many, and weights are mapped as they lie in the file.
            if packed := [part.filename for part in archive.infolist() if part.compress_type != zipfile.ZIP_STORED]:
                raise ValueError(f"its {packed[0]} is compressed, as torch never writes it")
            opened = stack.enter_context(archive.open(pickles[0]))
        names, texts = set(), [""]
        for number in range(1 if is_zip else _PICKLES):
            if number and not opened.peek(1):  # a pickle of another program
                break
            for code, value, _ in pickletools.genops(opened):
                if isinstance(value, str):
                    texts = [*texts[-1:], value]
                if code.name == "GLOBAL":
                    names.add(str(value).replace(" ", "."))
                elif code.name == "STACK_GLOBAL":
                    names.add(".".join(texts))
        return sorted(names)


# ---- safetensors


def _read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it is no dict
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged or cut off ({first_line(error)}); {_AGAIN}") from error


def _read_shards(index: Path) -> tuple[dict[str, torch.Tensor], tuple[Path, ...]]:
    """Weights of the files that an index of safetensors names, which lie beside it."""
    places = read_json(index, CheckpointError, f"{index}: no such file").get("weight_map")
    places = places if isinstance(places, dict) else {}
    names = sorted({str(name) for name in places.values()})
    if not names or not all(Path(name).name == name and name.endswith(".safetensors") for name in names):
        raise CheckpointError(f"{index} is no index of safetensors files beside it; {_OTHER}")
    files = tuple(index.parent / name for name in names)
    weights: dict[str, torch.Tensor] = {}
    for file in files:
        _checked_head(file)
        weights |= _read_safetensors(file)
    if missing := next((name for name in places if name not in weights), None):
        raise CheckpointError(f"{index} names the weight {missing}, which none of its files holds; {_AGAIN}")
    return weights, files


# ---- what is in a file


def _weights_in(file: Path, content: object, ema: bool) -> tuple[str | None, tuple[str, ...], dict[str, torch.Tensor]]:
    """The weights in what a file holds, the name under which it does, and the other names under which it does."""
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds no weights by name, but a {type(content).__name__}; {_OTHER}")
    if _are_weights(content):
        levels = {}
    else:
        levels = {name: content[name] for name in LEVELS if _are_weights(content.get(name))}
        if not levels:
            names = ", ".join(LEVELS)
            raise CheckpointError(f"{file} holds no weights, neither at its top nor under one of {names}; {_OTHER}")
    if ema and "ema" not in levels:
        raise ConfigError(f"ema: {file} holds no averaged weights; leave --ema out")
    level = "ema" if ema else next(iter(levels), None)
    return level, tuple(name for name in levels if name != level), dict(content if level is None else levels[level])


def _are_weights(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(one, torch.Tensor) for one in value.values())


def _check_weights(file: Path, weights: dict[Any, torch.Tensor]) -> None:
    """Check that weights have names, and their values in the file.

    Raises:
        CheckpointError: they do not.
    """
    for name, weight in weights.items():
        if not isinstance(name, str) or not name.isprintable():
            raise CheckpointError(f"{file} holds a weight by {repr(name)[:100]}, which is no name of one; {_OTHER}")
        if weight.layout != torch.strided or weight.is_quantized or weight.is_meta:
            raise CheckpointError(
                f"{file}: {name} is sparse, quantized or without values; take a file of plain weights"
            )
        if weight.nbytes > weight.untyped_storage().nbytes():  # of the same numbers again and again
            raise CheckpointError(f"{file} holds fewer numbers than the {weight.numel():,} of {name}; {_OTHER}")


def _unwrapped(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    for wrapper in _WRAPPERS * 2:  # in either order
        if all(name.startswith(wrapper) for name in weights):
            weights = {name.removeprefix(wrapper): weight for name, weight in weights.items()}
    return weights
