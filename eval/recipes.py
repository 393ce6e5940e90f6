"""What the commands of the evaluation are told. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field

from wvq.settings.data import DataConfig


@dataclass
class EvaluationRecipe:
    """What a model is measured against.

    Args:
        data: the pictures: the held-out ones for a tokenizer, the training ones for a generator.
        reference: .npz file in the form of ADM's evaluation, for samples, in place of ``data``.
        reference_kind: ``train`` or ``validation``: what an .npz file holds, or which part of ``data`` is taken.
            Samples need the former and reconstructions the latter, which is taken if None.
        force_reference: take the other kind all the same; the result says so.
        feature_network: ``inception`` or ``efficientnet_lite0``; the former where its weights are given, if None.
        inception_weights: file with torch-fidelity's Inception weights.
        lpips: file with torchvision's VGG-16 weights, or ``download``: also measure LPIPS of reconstructions.
        num_workers: loader processes of each process; if None, on a GPU as many as there are cores for each (at most
            16), and none on a CPU.
        out: JSON file for the result.
    """

    data: DataConfig = field(default_factory=DataConfig)
    reference: str | None = None
    reference_kind: str | None = None
    force_reference: bool = False
    feature_network: str | None = None
    inception_weights: str | None = None
    lpips: str | None = None
    num_workers: int | None = None
    out: str | None = None


@dataclass
class AtomicRecipe:
    """The atomic study: codebooks against features of a known distribution, without a network.

    Args:
        out: folder for the results; cells that it already holds are not run again.
        preset: ``paper``, ``bimodal``, ``shifts``, ``kmeans``, ``affine``, ``theory`` or ``sweeps``; the axes below
            then choose among its cells.
        quantizers: methods (default: sliced).
        distributions: ``gaussian``, ``uniform``, ``bimodal`` (default: gaussian).
        shifts: added to every dim of the features (default: 0).
        separations: distance of the modes from their middle, in every dim (default: 0).
        target_scales: tau of the alignments (default: 1).
        code_scales: width of the codes at the start (default: 1).
        num_codes, code_dim: K and D (default: 16,384 and 8).
        num_features: fresh features of each step (default: 50,000).
        steps: training steps (default: 2,000; 10,000 in ``bimodal``).
        evaluation_features: fresh features for E, U and C (default: 200,000).
        num_projections: directions per step of ``sliced`` (default: 4).
        seed: start of codes, features and directions.
        progress: show progress bars.
    """

    out: str = "runs/atomic"
    preset: str | None = None
    quantizers: list[str] | None = None
    distributions: list[str] | None = None
    shifts: list[float] | None = None
    separations: list[float] | None = None
    target_scales: list[float] | None = None
    code_scales: list[float] | None = None
    num_codes: int | None = None
    code_dim: int | None = None
    num_features: int | None = None
    steps: int | None = None
    evaluation_features: int | None = None
    num_projections: int | None = None
    seed: int = 0
    progress: bool = True
