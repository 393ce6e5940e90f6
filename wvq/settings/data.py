"""Which pictures to read and how to crop them. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, replace

from wvq.checks import FLAG, NAMES, SOURCE, TEXT, Checker, integer, interval, list_of, number, one_of, or_null, require
from wvq.errors import ConfigError
from wvq.settings.size import SIZE, Size

CROPS = ("random", "ten", "center")
FITS = ("crop", "pad")
PAD_COLORS = ("auto", "white", "edge")
UNREADABLE = ("skip", "refuse")
LAYOUTS = ("classes", "splits", "plain")


@dataclass
class DataConfig:
    """Which pictures to read and how to crop them.

    Args:
        path: ``openmoji`` (built in), a folder of pictures, parquet files, tar shards in the form of WebDataset (a
            folder, a ``.tar``, or a pattern such as ``train-{0000..0099}.tar``, also over http or hf), or a Hub data
            set id.
        stream: read shards while they are needed, tar or parquet, here or elsewhere: nothing is copied, and the memory
            does not grow with the data set. If not, tar shards become a table on disk first.
        shuffle_buffer: pictures that a training run on a stream reads ahead and shuffles at a time, in each process.
        subset: configuration name of a Hub data set that has several.
        layout: what the folders in ``path`` are: ``classes``; ``splits``, such as train and val; or ``plain``: all
            pictures at any depth are one set without classes. Where it is not given the names decide, and where these
            leave a doubt, the error says what each would read. Of several parquet or tar files, ``splits`` takes those
            that are named after a split, and ``plain`` all, for training.
        train_split: split to train on.
        validation_split: held-out split; if not given, a split named ``validation`` (or a folder's ``val``, ``dev``),
            or else ``validation_fraction`` of the training split.
        validation_fraction: share of the pictures held out when there is no validation split, in (0, 1).
        image_column: column with the pictures; found by its type if not given.
        label_column: column with the classes; found by its type or the name ``label`` if not given.
        caption_column: column with the captions; found by the names ``caption``, ``captions`` and ``text`` if not
            given. A picture may have a list of them: training draws one each time.
        classes: names of the classes to keep, in this order; all if not given. Of shards whose classes are numbers:
            the names of class 0, 1, and so on.
        image_size: size of the pictures that the model sees, in pixels: the side of a square, or ``[height, width]``,
            which may also be written ``256x384``.
        fit: how a picture of another shape gets that size: ``crop`` cuts off what is too long; ``pad`` scales the
            whole picture to fit inside, and fills the rest.
        pad_color: what ``pad`` fills with: ``auto``, the median colour of the picture's border; ``white``; or
            ``edge``, its outermost pixels repeated.
        crop: what training sees: ``random`` parts; ``ten``: in turn the centre, the four corners and the mirror images
            of these; or ``center`` (validation is always centre). With ``pad`` these are the places that the whole
            picture goes to.
        min_crop_fraction: smallest share of the sides that a random crop keeps, or that of a corner, in (0, 1]; with
            ``pad`` the smallest share of the sides that the picture is scaled to fit.
        crop_scales: of ``ten`` with ``crop``, in place of ``min_crop_fraction``: ten crops are taken from each central
            part of the picture of so many times ``image_size`` pixels; numbers of at least 1.
        flip: mirror training pictures at random.
        seed: seed of the hold-out and of the random crops.
        unreadable: what happens with a picture that cannot be read: ``skip`` leaves it out of evaluation and export,
            shows another in its place in training, and reports how many there were; ``refuse`` is an error. If more
            than 10 and more than 5 % cannot be read, that is an error too.
        ignore_mixed_split: go on, with a warning, where held-out pictures were trained on in the run that this one
            starts from, resumes or measures.
    """

    path: str = "openmoji"
    stream: bool = False
    shuffle_buffer: int = 1_000
    subset: str | None = None
    layout: str | None = None
    train_split: str = "train"
    validation_split: str | None = None
    validation_fraction: float = 0.1
    image_column: str | None = None
    label_column: str | None = None
    caption_column: str | None = None
    classes: list[str] | None = None
    image_size: Size | str = 32
    fit: str = "crop"
    pad_color: str = "auto"
    crop: str = "random"
    min_crop_fraction: float = 0.8
    crop_scales: list[float] | None = None
    flip: bool = False
    seed: int = 0
    unreadable: str = "skip"
    ignore_mixed_split: bool = False

    @property
    def size(self) -> Size:
        """``image_size`` as files hold it: the side of a square, or [height, width].

        Raises:
            ConfigError: it is neither.
        """
        return require("data.image_size", self.image_size, SIZE)

    @property
    def source(self) -> str:
        """The data set's name, with its subset."""
        return self.path if self.subset is None else f"{self.path}/{self.subset}"

    def of_held_out(self) -> DataConfig:
        """The same pictures as they are measured: centre crop, never flipped."""
        return replace(self, crop="center", flip=False, crop_scales=None)

    def check(self) -> None:
        """Raise ConfigError, naming the field, if a value is out of range or two do not go together."""
        check = Checker(self, "data")
        check.each(SOURCE, "path")
        check.each(TEXT, "train_split")
        check.each(or_null(TEXT), "subset", "validation_split", "image_column", "label_column", "caption_column")
        check.each(or_null(one_of(LAYOUTS)), "layout")
        check.each(interval("(0, 1)"), "validation_fraction")
        check.each(integer(), "shuffle_buffer")
        check.each(SIZE, "image_size")
        check.one_of("fit", FITS)
        check.one_of("pad_color", PAD_COLORS)
        check.one_of("crop", CROPS)
        check.each(interval("(0, 1]"), "min_crop_fraction")
        check.each(or_null(list_of(number(1), "one or more numbers of at least 1")), "crop_scales")
        check.each(or_null(NAMES), "classes")
        check.each(FLAG, "stream", "flip", "ignore_mixed_split")
        check.each(integer(0), "seed")
        check.one_of("unreadable", UNREADABLE)
        if self.crop_scales is not None and self.crop != "ten":
            raise ConfigError("data.crop_scales go with data.crop ten; leave them out, or set data.crop to ten")
        if self.crop_scales is not None and self.fit == "pad":
            raise ConfigError("data.crop_scales cut into the picture; leave them out, or set data.fit to crop")
        if self.crop == "ten" and self.flip:
            raise ConfigError("data.flip: ten crops hold the mirror images already; set it to false")
