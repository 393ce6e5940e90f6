"""The network that published tokenizers share, as plain formulas over the weights of a file: a second account of it.

Sources: Esser et al. 2021 (taming-transformers), Sun et al. 2024 (LlamaGen), Tian et al. 2024 (VAR), the authors of
arXiv 2506.15078 (the residual projector).
"""

import torch
import torch.nn.functional as F


class PlainNetwork:
    """Encoder and decoder by the names that a file gives to the weights.

    Args:
        weights: the file's weights.
        kind: torch's type to compute in.
    """

    def __init__(self, weights, kind=torch.float64):
        self.w = {name: weight.to(kind) for name, weight in weights.items()}
        llamagen = "encoder.mid.0.conv1.weight" in weights
        self.down, self.up, self.block = ("conv_blocks", "conv_blocks", "res") if llamagen else ("down", "up", "block")
        self.middle = ("mid.0", "mid.1", "mid.2") if llamagen else ("mid.block_1", "mid.attn_1", "mid.block_2")
        self.rising = not llamagen
        self.books = "quantizer." if "quantizer.embedding.weight" in weights else "quantize."
        self.unit_codes = llamagen

    def encode(self, x):
        """Features (B, D, h, w) of pictures (B, 3, H, W)."""
        x = self.conv("encoder.conv_in", x)
        for index in range(self.levels("encoder", self.down)):
            x = self.level(f"encoder.{self.down}.{index}", x)
            if f"encoder.{self.down}.{index}.downsample.conv.weight" in self.w:
                x = F.pad(x, (0, 1, 0, 1))
                x = self.conv(f"encoder.{self.down}.{index}.downsample.conv", x, padding=0, stride=2)
        x = self.conv("quant_conv", self.ending("encoder", self.center("encoder", x)))
        return F.normalize(x, dim=1) if self.unit_codes else x

    def decode(self, quantized):
        """Pictures (B, 3, H, W) of quantized features (B, D, h, w)."""
        x = self.center("decoder", self.conv("decoder.conv_in", self.conv("post_quant_conv", self.restored(quantized))))
        count = self.levels("decoder", self.up)
        for index in reversed(range(count)) if self.rising else range(count):
            x = self.level(f"decoder.{self.up}.{index}", x)
            if f"decoder.{self.up}.{index}.upsample.conv.weight" in self.w:
                x = self.conv(f"decoder.{self.up}.{index}.upsample.conv", F.interpolate(x, scale_factor=2.0))
        return self.ending("decoder", x)

    def lookup(self, codes, sides=None, taken=()):
        """Quantized features (B, D, h, w) of codes (B, h, w), or of codes (B, T) of maps of these sides.

        Args:
            codes: int64.
            sides: of the maps, the coarsest first; None for one map.
            taken: the convolution of each map.
        """
        book = self.w[f"{self.books}embedding.weight"]
        if self.unit_codes:
            book = F.normalize(book, dim=1)
        if sides is None:
            return book[codes].permute(0, 3, 1, 2)
        convs = f"{self.books}{'phi' if self.books == 'quantizer.' else 'quant_resi'}.qresi_ls"
        total = 0
        for side, conv, part in zip(sides, taken, codes.split([side**2 for side in sides], dim=1), strict=True):
            maps = book[part].unflatten(1, (side, side)).permute(0, 3, 1, 2)
            if side != sides[-1]:
                maps = F.interpolate(maps, size=(sides[-1], sides[-1]), mode="bicubic")
            total = total + 0.5 * maps + 0.5 * self.conv(f"{convs}.{conv}", maps)
        return total

    def restored(self, quantized):
        """What the decoder reads: with the output of the residual projector, where there is one."""
        if "projector_out.0.weight" not in self.w:
            return quantized
        x = quantized
        for index in range(0, 15, 3):
            x = F.silu(self.norm(f"projector_out.{index + 1}", self.conv(f"projector_out.{index}", x)))
        return quantized + self.conv("projector_out.15", x)

    def levels(self, part, name):
        """Number of levels of the encoder or decoder."""
        count = 0
        while f"{part}.{name}.{count}.{self.block}.0.conv1.weight" in self.w:
            count += 1
        return count

    def level(self, name, x):
        """The blocks of one resolution."""
        index = 0
        while f"{name}.{self.block}.{index}.conv1.weight" in self.w:
            x = self.residual(f"{name}.{self.block}.{index}", x)
            if f"{name}.attn.{index}.norm.weight" in self.w:
                x = self.attention(f"{name}.attn.{index}", x)
            index += 1
        return x

    def center(self, part, x):
        """The blocks in the middle."""
        first, attention, last = (f"{part}.{name}" for name in self.middle)
        return self.residual(last, self.attention(attention, self.residual(first, x)))

    def ending(self, part, x):
        """The last norm and convolution."""
        return self.conv(f"{part}.conv_out", F.silu(self.norm(f"{part}.norm_out", x)))

    def conv(self, name, x, padding=None, stride=1):
        """A convolution, padded to the same size if no padding is given."""
        weight = self.w[f"{name}.weight"]
        same = weight.shape[-1] // 2 if padding is None else padding
        return F.conv2d(x, weight, self.w[f"{name}.bias"], stride, same)

    def norm(self, name, x):
        """A group norm of 32 groups."""
        return F.group_norm(x, 32, self.w[f"{name}.weight"], self.w[f"{name}.bias"], 1e-6)

    def residual(self, name, x):
        """A residual block."""
        h = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", x)))
        h = self.conv(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", h)))
        shortcut = f"{name}.nin_shortcut"
        return (self.conv(shortcut, x) if f"{shortcut}.weight" in self.w else x) + h

    def attention(self, name, x):
        """Attention of one head over all positions."""
        h = self.norm(f"{name}.norm", x)
        if f"{name}.qkv.weight" in self.w:
            q, k, v = self.conv(f"{name}.qkv", h).flatten(2).chunk(3, dim=1)
        else:
            q, k, v = (self.conv(f"{name}.{part}", h).flatten(2) for part in "qkv")
        weights = (q.transpose(1, 2) @ k / q.shape[1] ** 0.5).softmax(-1)
        return x + self.conv(f"{name}.proj_out", (v @ weights.transpose(1, 2)).view_as(x))
