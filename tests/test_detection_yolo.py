"""The detector's network: the published sizes, grids, names, precision, and that it learns."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from steadysam.detection import SIZES
from steadysam.detection.boxes import detect, iou_matrix
from steadysam.detection.losses import detection_losses
from steadysam.detection.table import SCALES
from steadysam.detection.yolo import Detector
from steadysam.errors import ConfigError


def seeded(**options) -> Detector:
    torch.manual_seed(0)
    return Detector("n", **options)


@pytest.mark.parametrize(
    "size, millions, channels",
    [
        ("n", 3.0110, (64, 128, 256)),
        ("s", 11.1360, (128, 256, 512)),
        ("m", 25.8569, (192, 384, 576)),
        ("l", 43.6306, (256, 512, 512)),
        ("x", 68.1536, (320, 640, 640)),
    ],
)
def test_sizes_of_the_public_table(size, millions, channels):
    with torch.device("meta"):
        detector = Detector(size)
    assert round(sum(p.numel() for p in detector.parameters()) / 1e6, 4) == millions
    assert (detector.channels, detector.size, detector.classes) == (channels, size, 1)


def test_n_at_640_has_8400_locations_and_8_gflops():
    with torch.device("meta"):
        detector, images = Detector("n"), torch.zeros(1, 3, 640, 640)
        with FlopCounterMode(display=False) as counter:
            features = detector.features(images)
            predictions = detector.predict(features)
    assert [tuple(p.shape) for p in features] == [(1, 64, 80, 80), (1, 128, 40, 40), (1, 256, 20, 20)]
    assert tuple(predictions.scores.shape) == (1, 8400, 1)
    assert tuple(predictions.edges.shape) == (1, 8400, 4, 16)
    assert tuple(predictions.centres.shape) == (8400, 2)
    assert round(counter.get_total_flops() / 1e9, 2) == 8.08


def test_repeats_and_names():
    assert [tuple(SCALES[size].repeats(full) for full in (3, 6)) for size in SIZES] == [
        (1, 2),
        (1, 2),
        (2, 4),
        (3, 6),
        (3, 6),
    ]
    parts = {name.split(".")[0] for name, _ in itertools.chain(seeded().named_parameters(), seeded().named_buffers())}
    assert parts == {"backbone", "neck", "head"}
    norms = [m for m in seeded().modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.03)}


def test_non_square_image_and_its_grid():
    detector = seeded(classes=3).eval()
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        features = detector.features(images)
        predictions = detector(images)
        again = detector.predict(features)
    assert [tuple(p.shape[1:]) for p in features] == [(64, 8, 12), (128, 4, 6), (256, 2, 3)]
    assert tuple(predictions.scores.shape) == (2, 96 + 24 + 6, 3)
    assert predictions.centres[:2].tolist() == [[4, 4], [12, 4]]  # along a row first
    assert predictions.centres[[12, 96, 120, 125]].tolist() == [[4, 12], [8, 8], [16, 16], [80, 48]]
    assert predictions.strides[[0, 95, 96, 119, 120, 125]].tolist() == [8, 8, 16, 16, 32, 32]
    assert torch.equal(predictions.scores, again.scores)
    assert torch.equal(predictions.edges, again.edges)


def test_location_k_answers_for_its_own_place():
    """The order of the flattened maps is the order of the centres, and edges are split edge by edge."""
    detector = seeded().eval()
    maps = [torch.zeros(1, c, 64 // s, 96 // s) for c, s in zip(detector.channels, (8, 16, 32), strict=True)]
    edge_map = torch.arange(64.0)[None, :, None, None] + 1000 * torch.arange(8 * 12.0).view(1, 1, 8, 12)
    detector.head.edges[0] = torch.nn.Flatten(0, 0)  # hands its input on
    maps[0] = edge_map
    predictions = detector.predict(maps)
    assert predictions.edges[0, 13, 2, 5] == 13 * 1000 + 2 * 16 + 5
    assert predictions.centres[13].tolist() == [12, 12]


def test_start_is_rare_and_uniform():
    detector = seeded(classes=2)
    for branch, prior in zip(detector.head.scores, (5 / 2 / 6400, 5 / 2 / 1600, 5 / 2 / 400), strict=True):
        bias = branch[-1].bias  # pyright: ignore[reportIndexIssue]
        torch.testing.assert_close(torch.exp(bias), torch.full((2,), prior))
    for branch in detector.head.edges:
        assert not branch[-1].bias.any()  # pyright: ignore[reportIndexIssue]
    predictions = detector(torch.rand(2, 3, 64, 64))
    assert 0 < predictions.scores.sigmoid().max() < 0.05


@pytest.mark.parametrize("shape", [(1, 3, 64, 70), (1, 1, 64, 64), (3, 64, 64), (1, 3, 0, 32)])
def test_images_that_do_not_fit(shape):
    with pytest.raises(ConfigError, match="DETECTOR_IMAGE"):
        seeded()(torch.zeros(shape))


def test_sizes_that_do_not_exist():
    with pytest.raises(ConfigError, match="DETECTOR_UNKNOWN"):
        Detector("q")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="DETECTOR_CLASSES"):
        Detector("n", classes=0)


def test_same_seed_same_bytes():
    images, truth = torch.rand(2, 3, 64, 64), [(torch.tensor([[8.0, 8, 40, 48]]), torch.tensor([0]))] * 2
    totals, gradients = [], []
    for _ in range(2):
        detector = seeded()
        total = torch.stack(list(detection_losses(detector(images), truth)[0].values())).sum()
        total.backward()
        totals.append(total.item())
        gradients.append(detector.backbone.stem[0].weight.grad)  # pyright: ignore[reportAttributeAccessIssue]
    assert totals[0] == totals[1]
    assert torch.equal(gradients[0], gradients[1])


def test_bf16_autocast_keeps_losses_in_float32():
    detector, images = seeded(), torch.rand(2, 3, 64, 64)
    truth = [(torch.tensor([[8.0, 8, 40, 48]]), torch.tensor([0])), (torch.zeros(0, 4), torch.zeros(0).long())]
    with torch.autocast("cpu", torch.bfloat16):
        predictions = detector(images)
        terms, _ = detection_losses(predictions, truth)
    assert predictions.scores.dtype == predictions.edges.dtype == torch.float32
    assert {term.dtype for term in terms.values()} == {torch.float32}
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())


def test_learns_two_images():
    detector = seeded()
    images = torch.full((2, 3, 64, 64), 0.2)
    boxes = torch.tensor([[8.0, 16, 40, 56], [28.0, 4, 60, 28]])
    for image, (x0, y0, x1, y1) in zip(images, boxes.int().tolist(), strict=True):
        image[:, y0:y1, x0:x1] = 0.9
    truth = [(box[None], torch.tensor([0])) for box in boxes]
    optimiser = torch.optim.AdamW(detector.parameters(), lr=4e-3)
    totals = []
    for _ in range(30):
        terms, _ = detection_losses(detector(images), truth)
        total = torch.stack(list(terms.values())).sum()
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        totals.append(total.item())
    found = detect(detector(images), confidence=0.05)
    assert totals[-1] < totals[0] / 3
    for one, box in zip(found, boxes, strict=True):
        assert iou_matrix(one.boxes[:1], box[None]).item() > 0.5
