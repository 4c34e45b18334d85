"""nnU-Net as a row of a suite: trained and run by its own commands on our split, scored like everything else."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from steadysam.bench.group import Group
from steadysam.bench.store import keep_run_record
from steadysam.bench.training_specs import NnUnet
from steadysam.data.volumes import mask_ending, read_label_map
from steadysam.external.nnunet.prediction import predict
from steadysam.external.nnunet.training import TrainOptions, read_run, train
from steadysam.files import read_json, slug
from steadysam.locks import alone_in
from steadysam.types import Mask, Prompts, Volume


def train_nnunet(group: Group, run: str) -> Path:
    """The folder of nnU-Net's run, trained if it is not finished. Its seed is its own: it takes none.

    Raises:
        ExternalError: `NNUNET_MISSING` where nnU-Net is not installed, and those of `external.nnunet`.
    """
    spec, config = group.suite.runs[run].nnunet or NnUnet(), group.config(run)
    folder = group.folder / slug(run)
    options = TrainOptions(**spec.model_dump(exclude={"mirroring"}), device=config.compute.device, workers=1)
    train(config.data, folder, options, resume=True, wait=True)
    record = read_run(folder)
    facts = {"method": "nnunet", "weights_sha256": record["weights_sha256"], "versions": record["versions"]}
    seconds = {"commands": round(sum(done["seconds"] for done in record["commands"]), 1)}
    kept = {"target": group.target, "seed": group.seed, "run": run, **facts, "seconds": seconds}
    keep_run_record(group.folders.store, kept)
    return folder


@dataclass(eq=False)
class NnUnetSegmenter:
    """Hands out the masks that nnU-Net predicted for all test images at once."""

    group: Group
    run: str

    def __call__(self, case: str, volume: Volume, prompts: Prompts) -> tuple[Mask, Prompts, None]:
        """The mask of a test case; prompts are not looked at."""
        labels, _ = read_label_map(self.masks / f"{case}{mask_ending(volume)}", slice_axis=volume.grid.slice_axis)
        return Mask(labels > 0, volume.grid), Prompts(), None

    @property
    def spec(self) -> NnUnet:
        """What the suite asks for."""
        return self.group.suite.runs[self.run].nnunet or NnUnet()

    @cached_property
    def folder(self) -> Path:
        """The run."""
        return train_nnunet(self.group, self.run)

    @cached_property
    def masks(self) -> Path:
        """The folder of predicted masks, made anew where it belongs to other weights."""
        folder, output = self.folder, self.group.folder / f"{slug(self.run)}-masks"
        images = self.group.folder / f"{slug(self.run)}-images"
        with alone_in(images, wait=True):
            self._predict(folder, images, output)
        return output

    def _predict(self, folder: Path, images: Path, output: Path) -> None:
        weights = read_run(folder)["weights_sha256"]
        record = output / "run.json"
        if not record.exists() or read_json(record)["run"]["weights_sha256"] != weights:
            for case, _, _ in self.group.test:
                link = images / case.image.name
                link.unlink(missing_ok=True)
                link.symlink_to(case.image.resolve())
            device, mirroring = self.group.config(self.run).compute.device, self.spec.mirroring
            predict(folder, images, output, device=device, workers=1, mirroring=mirroring)

    def facts(self) -> dict[str, Any]:
        """What a cell records of the run."""
        record = read_run(self.folder)
        return {
            "method": f"nnunet {record['asked']['configuration']}",
            "prompted": False,
            "empty_consensus_policy": None,
            "training_seed": None,
            "size": "its own plan",
            "backbone": "none",
            "weights_sha256": record["weights_sha256"],
        }
