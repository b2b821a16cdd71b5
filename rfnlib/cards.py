"""The model card of a scale's released weights, written from their files and from the records about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rfnlib import recipes, scales, words, zoo
from rfnlib.lab import Lab
from rfnlib.scale import Arch
from rfnlib.specs import TrainSpec, parse

LICENCE = "MIT, as the repository"
COLUMNS = ("name", "network", "trained by", "learning rate", "epoch", "seed", "accuracy", "λ₁", "digest", "kB")
HEAD = """# Released weights: {scale} scale

Networks in half precision, measured after rounding: records are about these very weights, which they name by digest.
`rfnlib.zoo.load("{scale}/NAME")` builds one and compares its digest; it maps images in [0, 1] to logits.

- **Data:** {images} training images of {data}{checksums}; images are normalised inside.
- **Evaluation:** natural accuracy on {n} test images; λ₁ is the largest eigenvalue of the Hessian of the training loss.
- **Use:** research on the transferability of adversarial examples. They are small, for study, and not for deployment.
- **Licence:** {licence}.
"""


def card(lab: Lab) -> str:
    """The card of the released weights of `lab`'s scale, in Markdown.

    Raises:
        DamagedSnapshot: one of them was altered.
    """
    of, rows, data = lab.scale, [], set()
    for name, path in zoo.files(of.name, lab.weights.parent).items():
        _, about = zoo.read(path)
        spec = parse(about["spec"])
        found = measured(lab, spec, about)
        data |= {about["data"]} if "data" in about else set()
        network, size = Arch(spec.arch, spec.width, spec.stem).label, f"{path.stat().st_size / 1000:.0f}"
        trained = [words.trained(spec), *([words.recipe(recipes.parse(made))] if (made := about.get("recipe")) else [])]
        how = ("; ".join(trained), words.schedule(spec.schedule), str(found.get("epoch", "")), str(spec.seed))
        figures = (words.percent(found.get("accuracy")), words.number(found.get("top")))
        rows.append((name, network, *how, *figures, found.get("weights", words.MISSING), size))
    lines = [f"| {' | '.join(row)} |" for row in (COLUMNS, ["---"] * len(COLUMNS), *rows)]
    images = f"{of.n_train:,}" if of.n_train else "all"
    checksums = f" (checksum {', '.join(sorted(data))})" if data else ""
    head = HEAD.format(scale=of.name, images=images, data=of.data, checksums=checksums, n=of.accuracy_images,
                       licence=LICENCE)  # fmt: skip
    return "\n".join([head, *lines, ""])


def measured(lab: Lab, spec: TrainSpec, about: Mapping[str, Any]) -> dict[str, Any]:
    """What the records say of a run's network, or of what a recipe made of it: of all kinds, later ones last.

    Args:
        about: what its released file says: `iteration`, and `recipe` if there is one.
    """
    made, step = about.get("recipe"), about["iteration"]
    records = [r for r in lab.records.values() if r.spec == spec and r.settings.get("recipe") == made]
    rows = [row for r in records for row in r.rows if row["iteration"] == step]
    return {name: value for row in rows for name, value in row.items()}


def write(lab: Lab) -> bool:
    """Write the card of `lab`'s scale beside its weights; whether that changes it."""
    path, text = lab.weights / "README.md", card(lab)
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    path.write_text(text, encoding="utf-8")
    return True


def update() -> list[str]:
    """Write the card of every scale that has released weights beside them; the names of those that changed."""
    labs = [Lab(scale, "replay") for scale in scales.SCALES.values()]
    return [lab.scale.name for lab in labs if zoo.files(lab.scale.name, lab.weights.parent) and write(lab)]
