"""How fast pretraining is, and which share of what the device can do: images per second, FLOP per image, peak."""

from __future__ import annotations

import time
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

from steadysam.pretraining.batch import draw_batch
from steadysam.pretraining.config import PretrainConfig
from steadysam.pretraining.step import PretrainStep


def flop_per_image(step: PretrainStep, config: PretrainConfig, steps: int = 8) -> float:
    """Mean FLOP of forward and backward per image at the smallest size, convolutions and matrix products only.

    The generator's work is not counted. Rounds of prompting differ from step to step, hence a mean over `steps`.
    """
    device = next(step.parameters()).device
    size, total, images = min(config.optim.sizes), 0, 0
    step.requires_grad_(True)
    for number in range(steps):
        generator = torch.Generator(device).manual_seed(number)
        batch = draw_batch(
            generator, config.optim.images_at(size), size, config.scene, config.prompts, config.loss.rounds
        )
        counter = FlopCounterMode(display=False)
        with counter:
            step(batch, generator, 1.0)["loss"].backward()
        step.zero_grad(set_to_none=True)
        total, images = total + counter.get_total_flops(), images + len(batch.images)
    return total / images


def measured_peak(device: torch.device, precision: str, seconds: float = 2.0) -> float:
    """FLOP per second of a large square matrix product on this device in the training's number format."""
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    side = 8192 if device.type == "cuda" else 2048
    a = torch.randn(side, side, device=device).to(kind)
    best, started = 0.0, time.monotonic()
    while time.monotonic() - started < seconds:
        begin = time.perf_counter()
        for _ in range(3):
            torch.mm(a, a)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 3 * 2 * side**3 / (time.perf_counter() - begin))
    return best


def speed_record(
    step: PretrainStep, config: PretrainConfig, accelerator: Accelerator, seconds: float
) -> dict[str, Any]:
    """What goes into `run.json`; a step costs as much as `optim.images` of the smallest size, whatever its size."""
    images = config.optim.steps * config.optim.images * accelerator.num_processes
    flop = flop_per_image(step, config)
    peak = measured_peak(accelerator.device, config.compute.precision) * accelerator.num_processes
    rate = images / seconds if seconds else 0.0
    return {
        "device": _device_name(accelerator.device),
        "processes": accelerator.num_processes,
        "images_per_second": round(rate, 2),
        "gflop_per_image": round(flop / 1e9, 3),
        "peak_gflop_per_second": round(peak / 1e9, 1),
        "fraction_of_peak": round(rate * flop / peak, 4) if peak else None,
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"
