"""CLIP score: how well pictures fit their texts (Hessel et al. 2021, arXiv 2104.08718)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from wvq.errors import CheckpointError, DownloadError, first_line
from wvq.images import uint8_to_pil
from wvq.pretrained import DAMAGES, weights_hash


class CLIPScore:
    """100 times the cosine of a picture's and its text's embedding, at least 0.

    Args:
        path: folder or Hub id of a CLIP model of transformers with its processor files.
        device: where it runs.

    Raises:
        CheckpointError: a folder that holds no CLIP model.
        DownloadError: a Hub id that cannot be reached.
    """

    def __init__(self, path: str | Path, device: torch.device | str = "cpu"):
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        try:
            self.model = CLIPModel.from_pretrained(path).eval().requires_grad_(False).to(device)
            self.tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
            self.processor = AutoImageProcessor.from_pretrained(path, trust_remote_code=False)
        except DAMAGES as error:
            if Path(path).exists():
                raise CheckpointError(f"clip: {path} holds no CLIP model ({first_line(error)})") from error
            raise DownloadError(
                f"clip: {path} is no folder and could not be fetched from the Hub ({first_line(error)})"
            ) from error
        self.name = str(path)
        self.sha256 = weights_hash(self.model)
        self.length = self.model.config.text_config.max_position_embeddings

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
