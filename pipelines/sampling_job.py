"""A job of many pictures: one PNG each with its settings inside, resumed where it stopped, on any processes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin
from tqdm import tqdm
from typing_extensions import Unpack

import wvq
from wvq.checks import PATH
from wvq.data.pictures import read_picture
from wvq.data.pixels import save_png
from wvq.data.sheets import image_grid
from wvq.distributed import decided_by_first_process, is_main_process, processes, wait_for_all
from wvq.errors import ConfigError
from wvq.files.atomic import read_json, write_json
from wvq.files.locks import sole_run
from wvq.files.names import JOB_NAME, MAX_JOB_BYTES
from wvq.files.png_text import png_text
from wvq.files.reading import parse_json
from wvq.files.stage_folder import former_identity, refuse_occupied
from wvq.files.user_folders import expand_user
from wvq.generator.base.sampling_settings import SamplingOptions, SamplingSettings
from wvq.generator.sampling import check_sampling
from wvq.interruption import stop_on_signal
from wvq.pipelines.conditions import ClassLabels, Prompts, Requested, check_call, requested
from wvq.pipelines.given import GivenPictures, given_pictures
from wvq.pipelines.image_generation import ImageGenerationPipeline, PreviewCallback
from wvq.pipelines.memory import read_ahead, require_room
from wvq.tokenizer.picture_formats import PictureInput

SHEET_NAME, PREVIEW_NAME = "sheet.png", "preview.png"
PNG_KEY = "wvq"  # of the text chunk that holds a picture's settings as JSON
ON_SHEET = 64
COLUMNS = 8
# What identifies a job beside the version, which may change on the way.
_IDENTITY = (
    *("weights", "reduced", "seed", "num_images", "class_labels", "prompts", "sampling"),
    *("image", "mask_image", "keep_scales"),
)


def sample_to_folder(
    pipe: ImageGenerationPipeline,
    out: str | Path,
    class_labels: ClassLabels = None,
    prompt: Prompts = None,
    num_images: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    resume: bool = False,
    progress: bool = True,
    source: str | None = None,
    image: PictureInput | None = None,
    mask_image: PictureInput | None = None,
    keep_scales: int | None = None,
    preview: bool = False,
    **sampling: Unpack[SamplingOptions],
) -> list[Path]:
    """Draw pictures into a folder: ``<seed>.png`` each, ``job.json`` at the start, ``sheet.png`` at the end.

    Each file appears when it is complete, so a job that was stopped goes on with the pictures that are
    missing. Under several processes each draws its share; their number changes a picture no more than ``batch_size``
    does.

    Args:
        pipe: the pipeline.
        out: new or empty folder; with ``resume``, that of a job with the same settings and weights.
        class_labels, prompt, num_images: see :func:`wvq.pipelines.conditions.requested`.
        seed: picture i is drawn from seed + i.
        batch_size: pictures at once; a picture depends on it by rounding alone, with ``deterministic`` not at all.
        resume: go on with the job in ``out``.
        progress: show a progress bar.
        source: name of the pipeline, for the pictures' settings.
        image, mask_image, keep_scales: pictures to keep in part, as in a call.
        preview: show the main process's batch on ``preview.png`` after each scale, as long as the job runs. Of
            generators that draw scale by scale.
        sampling: fields of :class:`SamplingSettings`; the pipeline's own where None or left out.

    Returns:
        The files of all pictures, in order.

    Raises:
        ConfigError: settings out of range or that the generator cannot follow, pictures to keep that do not fit, a
            batch that does not fit into memory, a folder that holds something else, or a job with other settings.
        DataError: an image or a mask that is no picture.
        RunInterrupted: SIGTERM or Ctrl-C came; the pictures drawn so far are complete.
    """
    seed, batch_size = check_call(seed, batch_size)
    state, out = processes(), expand_user(out, "out", PATH)
    settings = pipe.sampling.updated(**sampling)
    request = requested(pipe.generator.config, class_labels, prompt, num_images)
    # Before the folder is claimed.
    check_sampling(pipe.generator.config, settings, preview)
    given = given_pictures(pipe.tokenizer, len(request), image, mask_image, keep_scales)
    codes = None if given is None else given.codes
    at_once = min(settings.whole_batch(batch_size), len(request))
    require_room(pipe, at_once, settings, read_ahead(codes, settings), preview)
    job = _Job(pipe, out, request, seed, settings, source, given)
    with sole_run(out):
        decided_by_first_process(lambda: job.start(resume))
        files = [out / f"{seed + index:06d}.png" for index in range(len(request))]
        # Shares follow the pictures' numbers, not what is missing: that changes while another process starts.
        rows = settings.fixed_rows or 1  # this many in a row fill a group
        mine = [
            index
            for index, file in enumerate(files)
            if index // rows % state.num_processes == state.process_index and not file.exists()
        ]
        bar = tqdm(total=len(mine), desc="sampling", unit="img", disable=not progress or not is_main_process())
        with bar, stop_on_signal() as stop, _previews(out, preview) as callback:
            size = settings.whole_batch(batch_size)
            for indices in (mine[start : start + size] for start in range(0, len(mine), size)):
                job.draw(indices, files, callback)
                bar.update(len(indices))
                stop.raise_if_set(
                    lambda: f"{sum(file.exists() for file in files)} of {len(files)} pictures are in {out}"
                )
        wait_for_all()
        if is_main_process():
            save_png(_sheet(files[:ON_SHEET], _titles(pipe, request)[:ON_SHEET]), out / SHEET_NAME)
        return files


def read_settings(picture: str | Path) -> dict[str, Any] | None:
    """How a picture was made, from its PNG text chunk; None if it is not one of a job."""
    try:
        settings = parse_json(png_text(picture, PNG_KEY) or "null")
    except (OSError, ValueError):
        return None
    return settings if isinstance(settings, dict) else None


@dataclass
class _Job:
    """What the pictures of a job have in common; arguments as in :func:`sample_to_folder`, checked."""

    pipe: ImageGenerationPipeline
    out: Path
    request: Requested
    seed: int
    settings: SamplingSettings
    source: str | None
    given: GivenPictures | None

    def start(self, resume: bool) -> None:
        """Claim the folder."""
        former = self.pipe.former_hashes()
        _claim(self.out, self.identity(self.pipe.weights_hashes(former)), former, resume)

    def identity(self, weights: dict[str, str]) -> dict[str, Any]:
        """The values that identify the job."""
        return {
            "wvq_version": wvq.__version__,
            "weights": weights,
            "reduced": self.pipe.generator.reduced,
            "seed": self.seed,
            "num_images": len(self.request),
            "class_labels": self.request.labels,
            "prompts": self.request.prompts,
            "sampling": self.settings.identity(),
            **({} if self.given is None else self.given.identity),
        }

    def draw(self, indices: list[int], files: list[Path], callback: PreviewCallback | None) -> None:
        """Draw pictures as one batch and write their files."""
        pipe, request = self.pipe, self.request[indices]
        seeds = [self.seed + index for index in indices]
        codes = None if self.given is None else self.given.codes[indices]
        drawn = pipe.draw(request, seeds, self.settings, len(seeds), fixed_codes=codes, callback=callback)
        for index, label, prompt, image in zip(indices, request.labels, request.prompts, drawn.images, strict=True):
            name = pipe.class_names[label] if pipe.class_names and label is not None else None
            described = {"pipeline": self.source, "weights": pipe.generator.reduced, "class_label": label}
            described |= {"prompt": prompt, "class_name": name}
            known = {field: value for field, value in described.items() if value is not None}
            kept = {} if self.given is None else self.given.sources[index]
            settings = {
                **known,
                **kept,
                "seed": self.seed + index,
                **asdict(self.settings),
                "wvq_version": wvq.__version__,
            }
            text = PngImagePlugin.PngInfo()
            text.add_itxt(PNG_KEY, json.dumps(settings, ensure_ascii=False))
            save_png(image, files[index], text)


@contextmanager
def _previews(out: Path, shown: bool) -> Iterator[PreviewCallback | None]:
    """What writes the sheet of a batch that is being drawn, in the main process; the sheet goes at the end."""
    file = out / PREVIEW_NAME
    if not is_main_process():
        yield None
        return
    try:
        yield (lambda scale, images: save_png(_grid(images[:ON_SHEET]), file)) if shown else None
    finally:
        file.unlink(missing_ok=True)  # also that of a run that was killed


def _claim(out: Path, job: dict[str, Any], former_weights: dict[str, str], resume: bool) -> None:
    """Write a new job into its folder; or, to resume, check that the job that is there is this one.

    A job of an earlier version names its weights by ``former_weights``.
    """
    file = out / JOB_NAME
    if not resume:
        if file.exists():
            raise ConfigError(f"{out} already holds a job; pass --resume to go on with it, or choose another folder")
        refuse_occupied(out, "files")
        out.mkdir(parents=True, exist_ok=True)
        write_json(file, job)
        return
    before = read_json(file, ConfigError, f"{out} holds no job to resume ({JOB_NAME} is missing)", MAX_JOB_BYTES)
    if before.get("weights") == former_weights:
        warnings.warn(former_identity(file), stacklevel=3)
        before["weights"] = job["weights"]
    for name in _IDENTITY:
        if before.get(name) != job.get(name):
            raise ConfigError(f"{out} was started with another {name}; resume with the settings in {file}")


def _titles(pipe: ImageGenerationPipeline, request: Requested) -> list[str]:
    """What to write under each picture of the sheet: its prompt, or else its class."""
    names = pipe.class_names
    classes = ["" if label is None else names[label] if names else str(label) for label in request.labels]
    return [prompt or name for prompt, name in zip(request.prompts, classes, strict=True)]


def _sheet(files: list[Path], titles: list[str]) -> Image.Image:
    return _grid([read_picture(file) for file in files], titles if any(titles) else None)


def _grid(images: Sequence[Image.Image], titles: list[str] | None = None) -> Image.Image:
    scale = max(1, 128 // images[0].width)
    return image_grid(images, min(COLUMNS, len(images)), scale=scale, captions=titles)
