"""Seconds per slice and per epoch, and peak memory: encoder, saliency, distillation, decoder; cached and not.

Ratios are measured side by side in one process; absolute times belong to the machine. Writes
`results/speed.{csv,md}`.
"""

from __future__ import annotations

import argparse
import platform
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from timing import in_turns, random_weights

from steadysam.embeddings import EmbeddingCache
from steadysam.files import write_text
from steadysam.methods import spd
from steadysam.methods.contract import Chance, TrainingCase
from steadysam.methods.samples import AugmentedSlices
from steadysam.methods.slicewise import decode_stack, encode_stack, encoder_key
from steadysam.methods.spd.config import Config
from steadysam.methods.spd.distill import distill
from steadysam.methods.spd.saliency import saliency_maps
from steadysam.methods.spd.stages import ConsistencySamples, decoder_losses, saliency_losses
from steadysam.report.table import to_csv, to_markdown
from steadysam.types import Frame, Preprocess, SlicePoints, SliceStack

HERE = Path(__file__).parent


def drawn_case(size: int, depth: int, name: str) -> TrainingCase:
    """A stack of noise with a disc in it, and four points a slice; speed does not depend on what is seen."""
    rng = np.random.default_rng(0)
    images = rng.random((depth, 1, size, size)).astype(np.float32)
    y, x = np.mgrid[:size, :size]
    disc = (x - size / 2) ** 2 + (y - size / 2) ** 2 < (size / 5) ** 2
    points = tuple(
        SlicePoints((rng.random((4, 2)) * size).astype(np.float32), np.ones(4, bool), tuple("abcd"))
        for _ in range(depth)
    )
    stack = SliceStack(images, Frame(size, size, size), Preprocess(size=size), f"{name}-{size}-{depth}")
    return TrainingCase(name, stack, np.repeat(disc[None], depth, axis=0), points)


def measure(backbone: str, size: int, depth: int, repeats: int) -> list[dict[str, object]]:
    """The rows of one backbone at one size."""
    config = Config(adapt="lora" if backbone.startswith("sam-vit") else "full")
    model = spd.build(config, random_weights(backbone, size)).eval()

    case = drawn_case(size, depth, backbone)
    key = encoder_key(model.sam)
    embeddings = encode_stack(model.sam, case.stack, EmbeddingCache(), key)
    saliency = saliency_maps(model.saliency_head, embeddings).numpy()
    with tempfile.TemporaryDirectory() as folder:
        disk = EmbeddingCache(Path(folder))
        encode_stack(model.sam, case.stack, disk, key)
        parts = {
            "encoder": lambda: encode_stack(model.sam, case.stack, EmbeddingCache(), key),
            "encoder, cached on disk": lambda: encode_stack(model.sam, case.stack, disk, key),
            "saliency head": lambda: saliency_maps(model.saliency_head, embeddings),
            "distillation (n = 2)": lambda: distill(case.points, saliency, config.rule),
            "decoder": lambda: decode_stack(model.sam, embeddings, case.points),
            "whole volume": lambda: spd.segment(model, config, case.stack, case.points, EmbeddingCache()),
            "whole volume, cached": lambda: spd.segment(model, config, case.stack, case.points, disk),
            "stage 1, one epoch": lambda: stage1_epoch(model, case, config),
            "stage 2, one epoch": lambda: stage2_epoch(model, case, config, disk),
        }
        taken: dict[str, float] = {}
        rows = []
        for name, work in parts.items():
            taken |= in_turns({name: work}, repeats)
            rows.append(
                {
                    "backbone": backbone,
                    "size": size,
                    "part": name,
                    "ms per slice": 1000 * taken[name] / depth,
                    "ratio to encoder": taken[name] / taken["encoder"],
                    "peak RSS MiB so far": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                }
            )
    return rows


def stage1_epoch(model: spd.Spd, case: TrainingCase, config: Config) -> None:
    """Forward and backward over all slices, in batches of four."""
    samples = AugmentedSlices([case], config.augment, prompted=False)
    trained = [p for n, p in model.named_parameters() if "saliency_head" in n or "image_encoder" in n]
    _epoch(trained, [samples.batch(r, _CHANCE) for r in _fours(case)], lambda b: saliency_losses(model, b, config))


def stage2_epoch(model: spd.Spd, case: TrainingCase, config: Config, cache: EmbeddingCache) -> None:
    """Forward and backward over all pairs, in batches of four; embeddings come from the cache."""
    samples = ConsistencySamples(model, [case], cache, config)
    trained = [p for n, p in model.named_parameters() if "mask_decoder" in n]
    _epoch(trained, [samples.batch(r, _CHANCE) for r in _fours(case)], lambda b: decoder_losses(model, b, config))


_CHANCE = Chance(0, "speed", 0, training=True)


def _fours(case: TrainingCase) -> list[range]:
    return [range(start, min(start + 4, case.stack.depth)) for start in range(0, case.stack.depth, 4)]


def _epoch(parameters: list[torch.nn.Parameter], batches: list, losses: Callable) -> None:
    for parameter in parameters:
        parameter.requires_grad_(True)
    for batch in batches:
        torch.stack(list(losses(batch).values())).sum().backward()
    for parameter in parameters:
        parameter.requires_grad_(False)
        parameter.grad = None


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models",
        nargs="*",
        help="NAME:PIXELS, such as sam-vit-base:512",
        default=["steadysam-tiny:96", "steadysam-tiny:256"],
    )
    parser.add_argument("--slices", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    rows: list[dict[str, object]] = []
    for model in flags.models:
        name, size = model.split(":")
        rows += measure(name, int(size), flags.slices, flags.repeats)
    columns = tuple(rows[0])
    intro = (
        f"`python benchmarks/speed.py` · {platform.machine()}, {flags.threads} threads, torch {torch.__version__}, "
        f"{flags.slices} slices of four points, median of {flags.repeats}; random weights.\n\n"
    )
    write_text(HERE / "results" / "speed.csv", to_csv(rows, columns))
    write_text(HERE / "results" / "speed.md", intro + to_markdown(rows, columns, digits=2))
    print(intro + to_markdown(rows, columns, digits=2))


if __name__ == "__main__":
    main()
