"""Train a detector on a COCO folder: train, val and annotations/instances_{train,val}.json.

python examples/train_coco_folder.py --root my_images --steps 5000 --size 256
python examples/train_coco_folder.py    # a few steps on a folder of its own with scenes of digits
"""

import argparse
import json
import tempfile
from pathlib import Path

from PIL import Image

from fastvision import training
from fastvision.data import CocoDetection, DigitScenes
from fastvision.inference import load_predictor, read_picture

parser = argparse.ArgumentParser(description="RetinaNet on a COCO folder")
parser.add_argument("--root", type=Path, help="the folder; made for the example if left out")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--size", type=int, default=96, help="side of the squares that images become")
options = parser.parse_args()


def write_scenes(root: Path, split: str, length: int) -> None:
    """A COCO folder with digits on photographs."""
    scenes = DigitScenes("train" if split == "train" else "test", length=length, size=96)
    images, annotations = [], []
    (root / split).mkdir(parents=True)
    for i, (image, target) in enumerate(scenes):
        name = f"{i:06}.jpg"
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / split / name, quality=95)
        images.append({"id": i, "file_name": name, "height": 96, "width": 96})
        for (x1, y1, x2, y2), label in zip(
            target["boxes"].tolist(), target["labels"].tolist(), strict=True
        ):
            box = [x1, y1, x2 - x1, y2 - y1]
            about = {"bbox": box, "area": box[2] * box[3], "iscrowd": 0, "category_id": label}
            annotations.append({"id": len(annotations) + 1, "image_id": i, **about})
    categories = [{"id": i, "name": name} for i, name in enumerate(scenes.classes) if i]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


scratch = Path(tempfile.mkdtemp())
root = options.root or scratch / "images"
if options.root is None:
    write_scenes(root, "train", 32)
    write_scenes(root, "val", 8)
classes = CocoDetection(root, "train").classes
recipe = training.load_recipe(
    "retinanet_scenes",
    {
        "model.num_classes": len(classes),  # and the background
        "data": {
            "name": "CocoDetection",
            "root": str(root),
            "train": {"split": "train"},
            "test": {"split": "val"},
        },
        "augmentation": {"name": "detection_training", "size": options.size, "flip": 0.0},
        "preparation": {"name": "detection_evaluation", "size": options.size},
        "start": None,  # from random weights
        "bar": None,
        "epochs": None,
        "steps": options.steps,
        "batch_size": 8,
    },
)
run = scratch / "run"
outcome = training.train(recipe, run, progress=True)
print(f"loss {outcome.losses[0]:.2f} to {outcome.losses[-1]:.2f}, {outcome.metrics}")

predictor = load_predictor("detection", weights=str(run))
(found,) = predictor([read_picture(sorted((root / "val").glob("*.jpg"))[0])])
print(f"{len(found.labels)} objects in a picture of val; checkpoints and curves are in {run}")
assert outcome.fall() > 1, outcome.losses
