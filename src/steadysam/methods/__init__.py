"""The table of methods. The command line, `info` and the contract tests follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from steadysam.methods import (
    all_empty,
    detector,
    dynunet,
    ldfsam,
    lora_sam,
    medical_sam_adapter,
    medsam,
    medsam2,
    prompt_dynunet,
    prompt_unet,
    sam2,
    sam_med2d,
    sam_refiner,
    sam_tuning,
    segformer,
    spd,
    transunet,
    unet,
    unetpp,
    zero_shot,
)
from steadysam.methods.contract import Method

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "spd": spd,
        "sam_tuning": sam_tuning,
        "zero_shot": zero_shot,
        "medsam": medsam,
        "medical_sam_adapter": medical_sam_adapter,
        "lora_sam": lora_sam,
        "sam_med2d": sam_med2d,
        "sam_refiner": sam_refiner,
        "sam2": sam2,
        "medsam2": medsam2,
        "prompt_unet": prompt_unet,
        "prompt_dynunet": prompt_dynunet,
        "unet": unet,
        "unetpp": unetpp,
        "transunet": transunet,
        "dynunet": dynunet,
        "segformer": segformer,
        "ldfsam": ldfsam,
        "detector": detector,
        "all_empty": all_empty,
    }
)
