"""An object carried through the slices of a stack by SAM 2's memory: to segment, and with gradients to tune.

Segmenting uses the library's public session. Its `forward` is closed to gradients, so tuning repeats that function's
own steps: infer one frame, store it, encode its memory. `tests/test_video_propagation.py` holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from steadysam.data.slices import normalise
from steadysam.methods.video.lanes import Plan, prompt_tensors

_OBJECT = 1  # the only object of a session


@dataclass(frozen=True, eq=False)
class Answer:
    """What the mask decoder says of one frame, before the object score is looked at.

    Args:
        logits: (M, m, m) of one or three masks.
        iou: (M,) predicted IoU.
        score: () logit of the object being there.
    """

    logits: Tensor
    iou: Tensor
    score: Tensor


def frames_of(images: Tensor, size: int) -> Tensor:
    """(T, 1 or 3, S, S) in [0, 1] -> (T, 3, size, size) as SAM 2 was trained to see them.

    That is with ImageNet's mean and deviation; the run's own `preprocess.norm` plays no part, as the network is the
    method's.
    """
    if images.shape[-1] != size:
        shrinks = images.shape[-1] > size
        images = F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=shrinks)
    return normalise(images.clamp(0, 1), "sam")


@torch.no_grad()
def propagate(video: Any, images: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Masks of all slices: logits (D, m, m) and object scores (D,), on the CPU.

    Slices with prompts are answered from their prompts alone; the others from the memory, first forwards from the key
    slice and then backwards. A slice whose object score is not positive has logits of -1024, as the library leaves it.
    A slice that is never reached has NaN as its score.

    Args:
        images: (D, 1 or 3, S, S) in [0, 1].
    """
    depth, size = len(images), int(video.config.image_size)
    logits = torch.full((depth, size // 4, size // 4), -1024.0)
    scores = torch.full((depth,), float("nan"))
    if plan.key is None:
        return logits, scores
    session, device = _session(video, frames_of(images, size))
    index = session.obj_id_to_idx(_OBJECT)

    def ask(t: int, back: bool = False) -> None:
        answer = video(session, frame_idx=t, reverse=back)
        logits[t], scores[t] = answer.pred_masks[0, 0].float().cpu(), answer.object_score_logits.reshape(()).cpu()
        for held in session.output_dict_per_obj[index].values():
            held.get(t, {}).pop("high_res_masks", None)  # as large as the image, and not looked at again

    for t, prompt in plan.prompts.items():
        session.add_point_inputs(index, t, prompt_tensors(prompt, size / images.shape[-1], device))
        session.obj_with_new_inputs = [_OBJECT]
        ask(t)
    for t, back in plan.order(depth):
        ask(t, back)
    return logits, scores


def unroll(video: Any, images: Tensor, plan: Plan) -> dict[int, Answer]:
    """The same with gradients: what the mask decoder says of every slice that is reached.

    Memories are made of soft masks, as in SAM 2's training, also on prompted slices, where segmenting makes them hard.

    Args:
        images: (T, 1 or 3, S, S) in [0, 1], on the model's device.
    """
    size = int(video.config.image_size)
    session, device = _session(video, frames_of(images, size))
    index = session.obj_id_to_idx(_OBJECT)
    answers: dict[int, Answer] = {}
    steps = [(t, False, prompt) for t, prompt in plan.prompts.items()]
    steps += [(t, back, None) for t, back in plan.order(len(images))]
    with _listening(video.mask_decoder) as heard:
        for t, back, prompt in steps:
            given = None if prompt is None else prompt_tensors(prompt, size / images.shape[-1], device)
            current = video._run_single_frame_inference(
                inference_session=session,
                obj_idx=index,
                frame_idx=t,
                batch_size=1,
                is_init_cond_frame=given is not None,
                point_inputs=given,
                mask_inputs=None,
                reverse=back,
            )
            answers[t] = heard.pop()
            session.store_output(index, t, output_value=current, is_conditioning_frame=given is not None)
            video._batch_encode_memories(
                inference_session=session,
                frame_idx=t,
                objects_needing_memory_encoding=[index],
                high_res_masks_for_memory=[current["high_res_masks"]],
                object_score_logits_for_memory=[answers[t].score.reshape(1, 1, 1)],
                is_mask_from_pts_per_obj=[False],
            )
    return answers


def _session(video: Any, frames: Tensor) -> tuple[Any, torch.device]:
    from transformers import Sam2VideoInferenceSession

    device = next(video.parameters()).device
    size = frames.shape[-1]
    session = Sam2VideoInferenceSession(
        video=frames,
        video_height=size,
        video_width=size,
        inference_device=device,
        inference_state_device=device,
        video_storage_device=frames.device,
        dtype=torch.float32,
    )
    return session, device


@contextmanager
def _listening(decoder: Any) -> Iterator[list[Answer]]:
    """The answers of the mask decoder as they come; the library passes on the best mask only, gated by the score."""
    heard: list[Answer] = []

    def note(module: Any, inputs: Any, output: Any) -> None:
        logits, iou, _, score = output
        heard.append(Answer(logits[0, 0], iou[0, 0], score.reshape(())))

    handle = decoder.register_forward_hook(note)
    try:
        yield heard
    finally:
        handle.remove()
