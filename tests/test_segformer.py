"""SegFormer: published counts, shapes, published weights under their old names, and whether it learns."""

import json

import pytest
import torch
from pydantic import ValidationError

from steadysam.checkpoints import save_tensors
from steadysam.config import make_config
from steadysam.data.cases import read_dataset
from steadysam.errors import CheckpointError
from steadysam.evaluate import evaluate_case
from steadysam.methods import segformer
from steadysam.runs import empty_model, load_run
from steadysam.segmenting import segment
from steadysam.training import train
from steadysam.training_data import read_case, split_of
from steadysam.types import Prompts
from toys import toy_run_values

# what published files call the layers, for the names of two of them in every rule
OLD = {
    "segformer.stages.1.patch_embeddings.proj.weight": "segformer.encoder.patch_embeddings.1.proj.weight",
    "segformer.stages.0.blocks.1.attention.q_proj.bias": "segformer.encoder.block.0.1.attention.self.query.bias",
    "segformer.stages.2.blocks.0.attention.sequence_reduction.layer_norm.weight": (
        "segformer.encoder.block.2.0.attention.self.layer_norm.weight"
    ),
    "segformer.stages.0.blocks.0.layernorm_after.bias": "segformer.encoder.block.0.0.layer_norm_2.bias",
    "segformer.stages.3.layer_norm.weight": "segformer.encoder.layer_norm.3.weight",
    "segformer.stages.3.blocks.1.mlp.fc2.weight": "segformer.encoder.block.3.1.mlp.dense2.weight",
    "segformer.stages.3.blocks.1.mlp.dwconv.dwconv.bias": "segformer.encoder.block.3.1.mlp.dwconv.dwconv.bias",
    "decode_head.linear_projections.3.proj.weight": "decode_head.linear_c.3.proj.weight",
    "decode_head.batch_norm.running_mean": "decode_head.batch_norm.running_mean",
}


def network(seed: int):
    torch.manual_seed(seed)
    return segformer.blank(segformer.Config())


def published(folder, *, encoder_alone: bool = False):
    """A folder as published, written by the library itself, with 150 classes; and the state it holds."""
    from transformers import SegformerConfig, SegformerForImageClassification, SegformerForSemanticSegmentation

    torch.manual_seed(7)
    kind = SegformerForImageClassification if encoder_alone else SegformerForSemanticSegmentation
    shape = SegformerConfig()
    shape.num_labels = 150
    model = kind(shape)
    model.save_pretrained(folder)
    return model.state_dict()


@pytest.mark.parametrize(
    ("variant", "millions"), [("b0", 3.8), ("b1", 13.7), ("b2", 27.5), ("b3", 47.3), ("b4", 64.1), ("b5", 84.7)]
)
def test_as_many_parameters_as_published(variant, millions):
    """The paper counts 150 classes; ours is one."""
    with torch.device("meta"):
        net = segformer.blank(segformer.Config(variant=variant))
    count = sum(p.numel() for p in net.parameters())
    width = segformer.SHAPES[variant][2]
    assert round((count + 149 * (width + 1)) / 1e6, 1) == millions
    if variant == "b0":
        assert count == 3_714_401
    with pytest.raises(ValidationError, match="variant"):
        segformer.Config.model_validate({"variant": "b6"})


@pytest.mark.parametrize("size", [(20, 20), (32, 96), (100, 70)])
def test_logits_have_the_size_of_the_image(size):
    model = network(0).train()
    outputs = model(torch.randn(2, 3, *size))
    assert [output.shape for output in outputs] == [(2, 1, *size)]
    assert model.eval()(torch.randn(1, 3, *size))[0].shape == (1, 1, *size)


def test_published_names_become_those_of_today():
    own = set(segformer.model_of(network(0)).state_dict())
    assert set(OLD) <= own
    assert {segformer.present_name(old) for old in OLD.values()} == set(OLD)
    assert {segformer.present_name(name) for name in own} == own, "names of today stay"


def test_published_weights_are_taken_but_for_the_layer_of_classes(tmp_path):
    held = published(tmp_path)
    assert "model.safetensors" in {path.name for path in tmp_path.iterdir()}
    torch.manual_seed(3)
    model = segformer.model_of(segformer.build(segformer.Config(weights=str(tmp_path)), None))
    found, drawn = model.state_dict(), segformer.model_of(network(3)).state_dict()
    classes = {name for name in found if name.startswith("decode_head.classifier.")}
    assert len(classes) == 2
    assert all(torch.equal(found[name], held[name]) for name in found if name not in classes)
    assert all(torch.equal(found[name], drawn[name]) for name in classes)


def test_an_encoder_alone_leaves_the_decoder_as_it_was_drawn(tmp_path):
    held = published(tmp_path, encoder_alone=True)
    torch.manual_seed(3)
    config = segformer.Config(weights=str(tmp_path / "model.safetensors"))
    found = segformer.model_of(segformer.build(config, None)).state_dict()
    drawn = segformer.model_of(network(3)).state_dict()
    for name in found:
        assert torch.equal(found[name], (drawn if name.startswith("decode_head.") else held)[name]), name


def test_weights_of_another_variant_or_with_a_gap_are_refused(tmp_path):
    held = published(tmp_path / "b0")
    with pytest.raises(CheckpointError, match="of another shape") as caught:
        segformer.build(segformer.Config(variant="b1", weights=str(tmp_path / "b0")), None)
    assert caught.value.code == "CKPT_SHAPE"
    del held["decode_head.linear_fuse.weight"]
    save_tensors(tmp_path / "gap.safetensors", held)
    with pytest.raises(CheckpointError, match="1 missing"):
        segformer.build(segformer.Config(weights=str(tmp_path / "gap.safetensors")), None)
    with pytest.raises(CheckpointError) as caught:
        segformer.build(segformer.Config(weights=str(tmp_path / "nowhere")), None)
    assert caught.value.code == "CKPT_MISSING"


def test_a_run_needs_no_published_weights_any_more(toy_dataset):
    values = {**toy_run_values(toy_dataset), "method": {"name": "segformer", "weights": "/gone"}}
    model, _ = empty_model(make_config(json.loads(json.dumps(values))), None)
    assert sum(p.numel() for p in model.parameters()) == 3_714_401


def test_it_learns_the_toy(toy_dataset, tmp_path):
    values = toy_run_values(toy_dataset)
    values["method"] = {"name": "segformer", "tuning": {"epochs": 12, "batch_size": 5, "learning_rate": 1e-3}}
    del values["backbone"]
    config = make_config(values)
    run = load_run(train(config, tmp_path / "run"), "cpu")
    case = split_of(config, read_dataset(toy_dataset)).test[0]
    volume, mask = read_case(case, (1,), None)
    found = segment(run, volume, Prompts())
    assert evaluate_case(found.mask.array, mask.array, volume.grid, 0).volume.dice > 0.7
    assert len(found.decisions) == 0
