"""Networks that were not trained here: known by a name and the digest of what they are, in place of a training spec.

>>> theirs = register("theirs", Adapted(model, mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26)))  # doctest: +SKIP
>>> arm = Arm("theirs", [theirs], At(scale.transfer, (1.0,)))  # as a surrogate  # doctest: +SKIP
>>> scale = replace(scale, name="mine", targets=(*scale.targets, Target(theirs, 1)))  # as a target  # doctest: +SKIP

Every process that measures such a network must have registered it: name your module in `RFN_EXTENSIONS`. Replay needs
its records alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from rfnlib import keys
from rfnlib.checks import require

if TYPE_CHECKING:
    from rfnlib.specs import TrainSpec


@dataclass(frozen=True)
class Outside:
    """What records call a network from outside; where a `TrainSpec` says how a network was trained, this does not.

    It stands for a run of one step, whose network is that of its only epoch, 1.

    Attributes:
        name: letters, digits, hyphens and underscores.
        digest: 16 hexadecimal digits that tell apart networks of one name, see `digest_of`.
    """

    name: str
    digest: str
    epochs: ClassVar[int] = 1
    batch: ClassVar[int] = 1
    width: ClassVar[None] = None
    stem: ClassVar[int] = 1
    input_penalty: ClassVar[float] = 0.0
    n_train = seed = schedule = minimizer = adversary = features = start = witness = None

    @property
    def arch(self) -> str:
        """The name, where others have an architecture's."""
        return self.name

    @property
    def label(self) -> str:
        """The name, as tables of targets have it."""
        return self.name

    @property
    def traits(self) -> list[str]:
        """In short words what tells it from networks trained here."""
        return [f"from outside {self.digest[:4]}"]

    @property
    def short_name(self) -> str:
        """What files about it are called."""
        return f"{self.name}-outside"

    def key(self) -> str:
        """The name under which everything made from it is kept."""
        return keys.key("outside", self)

    def history_key(self, iteration: int, per_epoch: int) -> str:
        """The digest: networks that are the same under two names are measured once."""
        return self.digest

    def lineage(self) -> Iterator[TrainSpec]:
        """The runs that it rests on: none of ours."""
        return iter(())

    def describe(self) -> dict[str, Any]:
        """As JSON data: what a record shows its reader."""
        return {"outside": self.name, "digest": self.digest}


_MODELS: dict[Outside, nn.Module] = {}


def register(name: str, model: nn.Module) -> Outside:
    """Let measurements call `model` by what this returns. A second model of a name is another one.

    Args:
        name: letters, digits, hyphens and underscores.
        model: from images in [0, 1] to logits, see `rfnlib.adapters` for those that want something else. It is handed
            over: put in eval mode, frozen, moved to the device of whoever measures it.

    Raises:
        ValueError: another name, or what has no digest.
    """
    plain = isinstance(name, str) and name.replace("-", "").replace("_", "").isalnum()
    require(plain, f"the model's name is {name!r}; give letters, digits, hyphens and underscores.")
    found = Outside(name, digest_of(model))
    _MODELS[found] = model
    return found


def model_of(outside: Outside) -> nn.Module:
    """The model that was registered.

    Raises:
        LookupError: this process knows none of that name and digest.
        ValueError: it has changed since.
    """
    there = [known.digest for known in _MODELS if known.name == outside.name]
    if outside not in _MODELS:
        has = f"knows {outside.name} as {', '.join(there)}" if there else "knows none of that name"
        raise LookupError(
            f"{outside.name} ({outside.digest}) is from outside, and this process {has}; register it in a module "
            "that RFN_EXTENSIONS names."
        )
    model = _MODELS[outside]
    now = digest_of(model)
    require(now == outside.digest, f"{outside.name} was {outside.digest} when it was registered and is {now} now; "
                                   "register it again, or a copy of it that nobody trains.")  # fmt: skip
    return model


def digest_of(model: nn.Module) -> str:
    """16 hexadecimal digits of SHA-256 over all weights and buffers, and over what modules say of themselves.

    The latter are their classes and settings (a stride, a size), by name, as they are printed.

    Raises:
        ValueError: no module, or one without weights that says nothing else to be known by.
    """
    require(isinstance(model, nn.Module), f"the model is a {type(model).__name__}; give a module, or "
                                          "adapters.Asked(function, version).")  # fmt: skip
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    known = tensors or any(getattr(m, "version", None) for m in model.modules())
    require(known, f"{type(model).__name__} has no weights to be known by; give adapters.Asked(function, version).")
    parts = [(name, type(m).__qualname__, m.extra_repr()) for name, m in model.named_modules()]
    return keys.digest(tensors, parts)
