"""CLIP score: how well pictures fit their texts (Hessel et al. 2021, arXiv 2104.08718)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from wvq.data.pixels import uint8_to_pil
from wvq.errors import CheckpointError, WVQError
from wvq.models.networks import load_frozen
from wvq.models.pretrained import weights_hash
from wvq.models.reading import DAMAGES, why_unloadable


class CLIPScore:
    """100 times the cosine of a picture's and its text's embedding, at least 0.

    Args:
        path: folder or Hub id of a CLIP model of transformers, as safetensors, with its processor files.
        device: where it runs.

    Raises:
        CheckpointError: a folder that holds no CLIP model, or one with weights or words missing.
        DownloadError: a Hub id that cannot be reached.
    """

    def __init__(self, path: str | Path, device: torch.device | str = "cpu"):
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, CLIPTextConfig

        try:
            model, folder = load_frozen(CLIPModel, path, "CLIP model")
        except WVQError as error:
            raise type(error)(f"clip: {error}") from error
        options = {"local_files_only": True, "trust_remote_code": False}
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, **options)
            self.processor = AutoImageProcessor.from_pretrained(folder, **options)
        except DAMAGES as error:
            reason = why_unloadable(folder, error)
            raise CheckpointError(f"clip: the processors of {folder} cannot be loaded ({reason})") from error
        # transformers makes a tokenizer without words where its files are missing.
        if not any((folder / name).is_file() for name in self.tokenizer.vocab_files_names.values()):
            raise CheckpointError(f"clip: {folder} lacks the files of its tokenizer; download the model again")
        text = model.config.text_config if isinstance(model, CLIPModel) else None
        assert isinstance(text, CLIPTextConfig)
        self.length = text.max_position_embeddings
        self.model = nn.Module.to(model, device)
        self.name = str(path)
        self.sha256 = weights_hash(self.model)

    @torch.inference_mode()
    def __call__(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Scores (B,) float32 on the CPU of uint8 pictures (B, 3, H, W) and their texts; long texts are cut."""
        device = self.model.device
        pixels = self.processor(images=uint8_to_pil(images), return_tensors="pt")["pixel_values"].to(device)
        words = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.length, return_tensors="pt"
        ).to(device)
        known = {name: words[name] for name in ("input_ids", "attention_mask")}
        output = self.model(pixel_values=pixels, **known)
        cosine = torch.nn.functional.cosine_similarity(output.image_embeds.float(), output.text_embeds.float())
        return 100 * cosine.clamp_min(0).cpu()

    def description(self) -> dict[str, str]:
        """For a result's settings."""
        return {"clip": self.name, "clip_sha256": self.sha256}
