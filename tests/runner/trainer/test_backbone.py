"""Backbones give features by level; torchvision's give the features of torchvision's own models."""

import sys
from pathlib import Path

import pytest
import torch
from sihlai.scheduler.v1.job_spec_pb2 import Neck
from torchvision import models
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.resnet import BasicBlock

from runner.trainer.backbone import OWN, SMALL, TINY, backbone_from_torchvision, build_backbone, load_imagenet_weights
from runner.trainer.failure import Failure
from runner.trainer.neck import build_neck
from services.scheduler.backbone import BACKBONES, REFUSED_BACKBONES, levels, size_min
from services.scheduler.fields import SIZE_PIXELS_MIN

# The light ones: all others were compared by hand, and follow the same paths through the code.
LIGHT = ["tiny", "small", "resnet18", "squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5"]

# Torchvision's families in small; what lies between the features and the result is the last child.
FAMILIES = {
    "resnet": lambda: models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=7),
    "densenet": lambda: models.DenseNet(growth_rate=4, block_config=(1, 1, 1, 1), num_init_features=8, num_classes=7),
    "convnext": lambda: models.ConvNeXt([CNBlockConfig(8, 8, 1), CNBlockConfig(8, None, 1)], num_classes=7),
    "swin": lambda: models.SwinTransformer([4, 4], 8, [1, 1, 1], [1, 2, 4], [4, 4], num_classes=7),
    "squeezenet": lambda: models.SqueezeNet("1_1", num_classes=7),
    "googlenet": lambda: models.GoogLeNet(num_classes=7, init_weights=False, transform_input=True),
}


def test_the_scheduler_knows_every_backbone_that_torchvision_has() -> None:
    names = set(models.list_models(module=models))
    assert names == (BACKBONES - OWN) | REFUSED_BACKBONES


@pytest.mark.parametrize("name", LIGHT)
def test_a_backbone_has_the_levels_that_the_scheduler_promises(name: str) -> None:
    backbone = build_backbone(name).eval()
    assert list(backbone.out_channels) == list(levels(name))
    with torch.inference_mode():
        features = backbone(torch.rand(1, 3, 128, 96))
    for level, found in features.items():
        assert found.shape[:2] == (1, backbone.out_channels[level])
        # Some families do not pad: their features are a little smaller than stride 2^level would make them.
        assert found.shape[2] / found.shape[3] == pytest.approx(128 / 96, rel=0.35)
        assert 0.5 * 128 / 2**level - 1 <= found.shape[2] <= 128 / 2**level


@pytest.mark.parametrize("name", [*LIGHT, "alexnet", "squeezenet1_0"])
def test_the_smallest_size_that_the_scheduler_lets_pass_can_be_taken(name: str) -> None:
    backbone = build_backbone(name).eval()
    side = size_min(name)
    with torch.inference_mode():
        assert all(min(each.shape[2:]) >= 1 for each in backbone(torch.rand(1, 3, side, side)).values())
        if side > SIZE_PIXELS_MIN:
            with pytest.raises(RuntimeError):
                backbone(torch.rand(1, 3, side - 1, side - 1))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_features_are_those_of_the_model_itself(name: str) -> None:
    torch.manual_seed(0)
    model = FAMILIES[name]().eval()
    backbone = backbone_from_torchvision(name, model).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        features = backbone(images)
        coarsest = features[max(features)]
        last_layers = list(model.children())[-1]
        if name == "squeezenet":
            found = last_layers(coarsest).flatten(1)
        elif name == "convnext":
            found = last_layers(coarsest.mean(dim=(2, 3), keepdim=True))
        else:
            found = last_layers(coarsest.mean(dim=(2, 3)))
        torch.testing.assert_close(found, model(images), rtol=1e-4, atol=1e-5)
    if name != "squeezenet":  # which does not pad
        assert all(each.shape[2:] == (64 // 2**level,) * 2 for level, each in features.items())


def test_imagenet_weights_come_from_a_local_file(tmp_path: Path) -> None:
    model = models.get_model("shufflenet_v2_x0_5")
    weights = models.get_model_weights("shufflenet_v2_x0_5").DEFAULT
    torch.save(model.state_dict(), tmp_path / weights.url.rsplit("/", 1)[-1])
    backbone = build_backbone("shufflenet_v2_x0_5")
    load_imagenet_weights(backbone, "shufflenet_v2_x0_5", tmp_path)
    assert torch.equal(next(backbone.parameters()), next(model.parameters()))


def test_missing_imagenet_weights_say_where_they_were_looked_for(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"wanted at .*resnet18-[0-9a-f]+\.pth, where no file is: put https://"):
        load_imagenet_weights(build_backbone("resnet18"), "resnet18", tmp_path)


def test_frozen_levels_neither_learn_nor_count() -> None:
    backbone = build_backbone(TINY)
    backbone.freeze(2)
    backbone.train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    features = backbone(torch.rand(4, 3, 16, 16))
    features[3].sum().backward()
    after = backbone.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    learning = {name.split(".")[0] for name, parameter in backbone.named_parameters() if parameter.grad is not None}
    assert changed == learning == {"stage-3"}


@pytest.mark.parametrize("name", ["timm/resnet18", "timm/convnext_atto", "timm/mobilenetv4_conv_small"])
def test_a_backbone_of_timm_has_its_features_by_level(name: str) -> None:
    backbone = build_backbone(name).eval()
    with torch.inference_mode():
        features = backbone(torch.rand(2, 3, 96, 128))
    assert list(features) == list(backbone.out_channels)
    for level, found in features.items():
        assert found.shape == (2, backbone.out_channels[level], 96 >> level, 128 >> level)
    backbone.freeze(5)
    backbone.train()
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(module.training for module in backbone.model.modules())
    with pytest.raises(Failure, match="frozen_levels is 2, but of a backbone of timm's all 5 levels are frozen, or 0"):
        backbone.freeze(2)


def test_a_name_that_timm_does_not_know_is_refused_and_so_is_one_without_levels() -> None:
    with pytest.raises(Failure, match="timm has no backbone 'resnet19' with features by level"):
        build_backbone("timm/resnet19")
    with pytest.raises(Failure, match="has features of one stride alone"):
        build_backbone("timm/vit_tiny_patch16_224")


def test_a_runner_without_timm_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # what an import then finds is nothing
    with pytest.raises(Failure, match=r"this runner lacks: install sihlai\[timm\] there"):
        build_backbone("timm/resnet18")


def test_a_name_that_is_no_backbone_is_refused() -> None:
    with pytest.raises(Failure, match="'resnet19' is no backbone"):
        build_backbone("resnet19")


def test_a_feature_pyramid_joins_the_levels_that_were_asked_for() -> None:
    backbone = build_backbone("resnet18").eval()
    pyramid = Neck(feature_pyramid=Neck.FeaturePyramid(channels=16, level_min=3, level_max=5))
    neck = build_neck(pyramid, backbone.out_channels)
    found = neck(backbone(torch.rand(1, 3, 64, 64)))
    assert {level: tuple(each.shape) for level, each in found.items()} == {
        3: (1, 16, 8, 8),
        4: (1, 16, 4, 4),
        5: (1, 16, 2, 2),
    }
    too_coarse = Neck(feature_pyramid=Neck.FeaturePyramid(channels=16, level_min=4, level_max=5))
    with pytest.raises(Failure, match="wants levels 4 to 5, the backbone has 1, 2, 3"):
        build_neck(too_coarse, build_backbone(TINY).out_channels)


def test_a_feature_pyramid_goes_on_where_the_backbone_ends() -> None:
    backbone = build_backbone(SMALL).eval()
    neck = build_neck(
        Neck(feature_pyramid=Neck.FeaturePyramid(channels=16, level_min=4, level_max=7)), backbone.out_channels
    )
    found = neck(backbone(torch.rand(2, 3, 128, 256)))
    assert {level: tuple(each.shape) for level, each in found.items()} == {
        4: (2, 16, 8, 16),
        5: (2, 16, 4, 8),
        6: (2, 16, 2, 4),
        7: (2, 16, 1, 2),
    }
    assert neck.out_channels == dict.fromkeys((4, 5, 6, 7), 16)


@pytest.mark.parametrize("channels", [1, 2, 8, 32, 48])
def test_a_feature_pyramid_takes_an_image_alone_whose_coarsest_level_is_one_pixel(channels: int) -> None:
    backbone = build_backbone(SMALL).eval()
    pyramid = Neck.FeaturePyramid(channels=channels, level_min=3, level_max=7)
    neck = build_neck(Neck(feature_pyramid=pyramid), backbone.out_channels).eval()
    with torch.inference_mode():
        one, other = (neck(backbone(images))[7] for images in torch.rand(2, 1, 3, 128, 128))
    assert one.shape == (1, channels, 1, 1)
    assert not torch.equal(one, other), "nothing of the image is left"


def test_the_small_backbone_has_fewer_than_a_million_weights() -> None:
    assert sum(each.numel() for each in build_backbone(SMALL).parameters()) < 1_000_000
