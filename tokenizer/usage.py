"""How a run uses its codebook, counted over the training pictures themselves, and the warning when it collapses."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from wvq.distributed import gather_objects, is_main_process, process_rank, world_size
from wvq.tokenizer.quantizers.statistics import code_perplexity

ALARM_SHARE = 0.05  # of K; a codebook of lower perplexity has collapsed
WARM_SHARE = 0.05  # of the run's pictures; before that a codebook may still be finding its features


class CodebookUsage:
    """Histogram of the codes since the last report; only a report waits for the device.

    A report needs at least K tokens, or even a uniform use would look like a collapse: until then counts go on.
    """

    def __init__(self) -> None:
        self.counts: torch.Tensor | None = None  # (G, K)
        self.alarmed = False

    @torch.no_grad()
    def update(self, codes: torch.Tensor, num_codes: int, num_groups: int = 1) -> None:
        """Count codes (...), or (..., G) for several codebooks, of one training step."""
        if self.counts is None:
            self.counts = torch.zeros(num_groups, num_codes, dtype=torch.int64, device=codes.device)
        rows = codes.reshape(-1, num_groups).T
        self.counts.scatter_add_(1, rows, torch.ones_like(rows))

    def report(self, accelerator: Accelerator, images_seen: int, warm: float) -> tuple[dict[str, float], str | None]:
        """Utilization and perplexity since the last report; once, after ``warm`` pictures, a warning of collapse."""
        if self.counts is None:
            return {}, None
        counts = accelerator.reduce(self.counts, "sum")
        num_codes = counts.shape[1]
        if int(counts[0].sum()) < num_codes:
            return {}, None
        self.counts.zero_()
        perplexity = float(torch.stack([code_perplexity(row.double()) for row in counts]).mean())
        figures = {
            "window_utilization": float((counts > 0).double().mean()),
            "window_perplexity": perplexity,
        }
        if perplexity >= ALARM_SHARE * num_codes or images_seen < warm or self.alarmed:
            return figures, None
        self.alarmed = True
        return figures, (
            f"the codebook has collapsed: perplexity {perplexity:.0f} of {num_codes:,} codes after {images_seen:,} "
            "images; align it (model.quantizer: sliced), give it its own rate (train.codebook_learning_rate: "
            "0.02) or lower model.commitment_weight"
        )

    def state_dict(self) -> dict:
        """The state of an exact resume, with the counts of each process. All processes call it together."""
        counts = gather_objects(None if self.counts is None else self.counts.cpu())
        return {"counts": counts, "alarmed": self.alarmed}

    def load_state_dict(self, state: dict, device: torch.device) -> None:
        """Restore the state that :meth:`state_dict` gave; on another number of processes the first takes the sum."""
        counts, self.alarmed = state["counts"], state["alarmed"]
        if not isinstance(counts, list):  # an older checkpoint holds those of the main process
            counts = [counts]
        if counts[0] is None:
            self.counts = None
        elif len(counts) == world_size():
            self.counts = counts[process_rank()].to(device)
        else:
            total = torch.stack(counts).sum(0).to(device)
            self.counts = total if is_main_process() else torch.zeros_like(total)
