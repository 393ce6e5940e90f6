"""DiffAugment: random changes of pictures that gradients pass through, the same for real and reconstructed ones.

Source: Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training". Shapes: B pictures, C channels.
"""

from __future__ import annotations

import torch

from wvq.distributed import from_first_process, process_rank, world_size

TRANSLATION = 0.125  # largest shift, as a share of the side
CUTOUT = 0.5  # side of the square that is cut out, as a share of the picture's


def diff_augment(pictures: torch.Tensor) -> torch.Tensor:
    """Brightness, saturation, contrast, a shift and a cutout, each drawn for every picture on its own.

    Several processes draw for the joined batch, so that they see what one process would.

    Args:
        pictures: (B, C, H, W) in or near [-1, 1]; what is shifted in or cut out is 0.
    """
    draws = joined_rand(len(pictures), 7, pictures.device).to(pictures.dtype)
    brightness, saturation, contrast = (draws[:, i].view(-1, 1, 1, 1) for i in range(3))
    pictures = pictures + (brightness - 0.5)
    grey = pictures.mean(1, keepdim=True)
    pictures = (pictures - grey) * (2 * saturation) + grey
    mean = pictures.mean((1, 2, 3), keepdim=True)
    pictures = (pictures - mean) * (contrast + 0.5) + mean
    return _cut_out(_shift(pictures, draws[:, 3], draws[:, 4]), draws[:, 5], draws[:, 6])


def joined_rand(count: int, width: int, device: torch.device) -> torch.Tensor:
    """Uniform numbers (count, width) of this process's rows of the joined batch."""
    joined = from_first_process(torch.rand(world_size() * count, width, device=device))
    return joined[process_rank() * count : (process_rank() + 1) * count]


def _shift(pictures: torch.Tensor, down: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    rows, rows_inside = _source(down, pictures.shape[2])
    columns, columns_inside = _source(right, pictures.shape[3])
    batch = torch.arange(len(pictures), device=pictures.device).view(-1, 1, 1)
    shifted = pictures[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    inside = rows_inside[:, None, :, None] & columns_inside[:, None, None, :]
    return shifted * inside


def _source(share: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    # Where each row (or column) comes from, (B, side), and whether that lies in the picture.
    largest = int(side * TRANSLATION + 0.5)
    offsets = (share * (2 * largest + 1)).floor().clamp_max(2 * largest).long() - largest
    source = torch.arange(side, device=share.device) - offsets[:, None]
    return source.clamp(0, side - 1), (source >= 0) & (source < side)


def _cut_out(pictures: torch.Tensor, down: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    rows, columns = (_within(share, side) for share, side in zip((down, right), pictures.shape[2:], strict=True))
    return pictures * ~(rows[:, None, :, None] & columns[:, None, None, :])


def _within(share: torch.Tensor, side: int) -> torch.Tensor:
    # Whether each row (or column) belongs to the hole, whose middle may be anywhere in the picture: (B, side).
    middle = (share * side).floor()[:, None]
    place = torch.arange(side, device=share.device)
    size = int(side * CUTOUT + 0.5)
    return (place >= middle - size // 2) & (place < middle - size // 2 + size)
