"""Addresses of torchvision's trained weights, by builder and name."""

_SERVER = "https://download.pytorch.org/models/"

# the last of a model is its default
_FILES: dict[str, dict[str, str]] = {
    "alexnet": {
        "IMAGENET1K_V1": "alexnet-owt-7be5be79.pth",
    },
    "deeplabv3_mobilenet_v3_large": {
        "COCO_WITH_VOC_LABELS_V1": "deeplabv3_mobilenet_v3_large-fc3c493d.pth",
    },
    "deeplabv3_resnet101": {
        "COCO_WITH_VOC_LABELS_V1": "deeplabv3_resnet101_coco-586e9e4e.pth",
    },
    "deeplabv3_resnet50": {
        "COCO_WITH_VOC_LABELS_V1": "deeplabv3_resnet50_coco-cd0a2569.pth",
    },
    "densenet121": {
        "IMAGENET1K_V1": "densenet121-a639ec97.pth",
    },
    "densenet161": {
        "IMAGENET1K_V1": "densenet161-8d451a50.pth",
    },
    "densenet169": {
        "IMAGENET1K_V1": "densenet169-b2777c0a.pth",
    },
    "densenet201": {
        "IMAGENET1K_V1": "densenet201-c1103571.pth",
    },
    "fasterrcnn_mobilenet_v3_large_320_fpn": {
        "COCO_V1": "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth",
    },
    "fasterrcnn_mobilenet_v3_large_fpn": {
        "COCO_V1": "fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7.pth",
    },
    "fasterrcnn_resnet50_fpn": {
        "COCO_V1": "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
    },
    "fasterrcnn_resnet50_fpn_v2": {
        "COCO_V1": "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth",
    },
    "fcn_resnet101": {
        "COCO_WITH_VOC_LABELS_V1": "fcn_resnet101_coco-7ecb50ca.pth",
    },
    "fcn_resnet50": {
        "COCO_WITH_VOC_LABELS_V1": "fcn_resnet50_coco-1167a1af.pth",
    },
    "fcos_resnet50_fpn": {
        "COCO_V1": "fcos_resnet50_fpn_coco-99b0c9b7.pth",
    },
    "googlenet": {
        "IMAGENET1K_V1": "googlenet-1378be20.pth",
    },
    "inception_v3": {
        "IMAGENET1K_V1": "inception_v3_google-0cc3c7bd.pth",
    },
    "keypointrcnn_resnet50_fpn": {
        "COCO_LEGACY": "keypointrcnn_resnet50_fpn_coco-9f466800.pth",
        "COCO_V1": "keypointrcnn_resnet50_fpn_coco-fc266e95.pth",
    },
    "lraspp_mobilenet_v3_large": {
        "COCO_WITH_VOC_LABELS_V1": "lraspp_mobilenet_v3_large-d234d4ea.pth",
    },
    "maskrcnn_resnet50_fpn": {
        "COCO_V1": "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
    },
    "maskrcnn_resnet50_fpn_v2": {
        "COCO_V1": "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth",
    },
    "mobilenet_v2": {
        "IMAGENET1K_V1": "mobilenet_v2-b0353104.pth",
        "IMAGENET1K_V2": "mobilenet_v2-7ebf99e0.pth",
    },
    "mobilenet_v3_large": {
        "IMAGENET1K_V1": "mobilenet_v3_large-8738ca79.pth",
        "IMAGENET1K_V2": "mobilenet_v3_large-5c1a4163.pth",
    },
    "mobilenet_v3_small": {
        "IMAGENET1K_V1": "mobilenet_v3_small-047dcff4.pth",
    },
    "resnet101": {
        "IMAGENET1K_V1": "resnet101-63fe2227.pth",
        "IMAGENET1K_V2": "resnet101-cd907fc2.pth",
    },
    "resnet152": {
        "IMAGENET1K_V1": "resnet152-394f9c45.pth",
        "IMAGENET1K_V2": "resnet152-f82ba261.pth",
    },
    "resnet18": {
        "IMAGENET1K_V1": "resnet18-f37072fd.pth",
    },
    "resnet34": {
        "IMAGENET1K_V1": "resnet34-b627a593.pth",
    },
    "resnet50": {
        "IMAGENET1K_V1": "resnet50-0676ba61.pth",
        "IMAGENET1K_V2": "resnet50-11ad3fa6.pth",
    },
    "resnext101_32x8d": {
        "IMAGENET1K_V1": "resnext101_32x8d-8ba56ff5.pth",
        "IMAGENET1K_V2": "resnext101_32x8d-110c445d.pth",
    },
    "resnext101_64x4d": {
        "IMAGENET1K_V1": "resnext101_64x4d-173b62eb.pth",
    },
    "resnext50_32x4d": {
        "IMAGENET1K_V1": "resnext50_32x4d-7cdf4587.pth",
        "IMAGENET1K_V2": "resnext50_32x4d-1a0047aa.pth",
    },
    "retinanet_resnet50_fpn": {
        "COCO_V1": "retinanet_resnet50_fpn_coco-eeacb38b.pth",
    },
    "retinanet_resnet50_fpn_v2": {
        "COCO_V1": "retinanet_resnet50_fpn_v2_coco-5905b1c5.pth",
    },
    "shufflenet_v2_x0_5": {
        "IMAGENET1K_V1": "shufflenetv2_x0.5-f707e7126e.pth",
    },
    "shufflenet_v2_x1_0": {
        "IMAGENET1K_V1": "shufflenetv2_x1-5666bf0f80.pth",
    },
    "shufflenet_v2_x1_5": {
        "IMAGENET1K_V1": "shufflenetv2_x1_5-3c479a10.pth",
    },
    "shufflenet_v2_x2_0": {
        "IMAGENET1K_V1": "shufflenetv2_x2_0-8be3c8ee.pth",
    },
    "ssd300_vgg16": {
        "COCO_V1": "ssd300_vgg16_coco-b556d3b4.pth",
    },
    "ssdlite320_mobilenet_v3_large": {
        "COCO_V1": "ssdlite320_mobilenet_v3_large_coco-a79551df.pth",
    },
    "vgg11": {
        "IMAGENET1K_V1": "vgg11-8a719046.pth",
    },
    "vgg11_bn": {
        "IMAGENET1K_V1": "vgg11_bn-6002323d.pth",
    },
    "vgg13": {
        "IMAGENET1K_V1": "vgg13-19584684.pth",
    },
    "vgg13_bn": {
        "IMAGENET1K_V1": "vgg13_bn-abd245e5.pth",
    },
    "vgg16": {
        "IMAGENET1K_FEATURES": "vgg16_features-amdegroot-88682ab5.pth",
        "IMAGENET1K_V1": "vgg16-397923af.pth",
    },
    "vgg16_bn": {
        "IMAGENET1K_V1": "vgg16_bn-6c64b313.pth",
    },
    "vgg19": {
        "IMAGENET1K_V1": "vgg19-dcbb9e9d.pth",
    },
    "vgg19_bn": {
        "IMAGENET1K_V1": "vgg19_bn-c79401a0.pth",
    },
    "wide_resnet101_2": {
        "IMAGENET1K_V1": "wide_resnet101_2-32ee1156.pth",
        "IMAGENET1K_V2": "wide_resnet101_2-d733dc28.pth",
    },
    "wide_resnet50_2": {
        "IMAGENET1K_V1": "wide_resnet50_2-95faca4d.pth",
        "IMAGENET1K_V2": "wide_resnet50_2-9ba9bcbe.pth",
    },
}


def addresses(name: str) -> dict[str, str]:
    """Of the weights of the builder ``name``, by the names they go by, "DEFAULT" among them."""
    files = {weights: _SERVER + file for weights, file in _FILES.get(name, {}).items()}
    return {**files, "DEFAULT": list(files.values())[-1]} if files else {}
