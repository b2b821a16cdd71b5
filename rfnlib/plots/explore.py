"""Figures of notebook 09, and the sliders that redraw them; where nobody can move one, a figure that stands still."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
from IPython import get_ipython
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rfnlib import words
from rfnlib.intervals import Estimate, interval
from rfnlib.plots import style
from rfnlib.plots.examples import examples

if TYPE_CHECKING:
    from rfnlib.lab import Lab
    from rfnlib.studies.explore import Attacked, Seen

Choices = Mapping[str, Mapping[str, Any]]  # what may be chosen, by the name of the argument and by what readers call it
Drawn = tuple[Figure, str, str]  # with its alternative text, and a sentence below it
LABELS = {"rho": "ρ", "eps": "ε"}  # of sliders whose argument has another name
LEVELS = (8, 16, 24, 32, 40, 48, 64)  # ε that digits are attacked with, in grey levels
SHOWN, GAIN = 8, 3  # digits, and how much larger their perturbations are drawn


def sliders(name: str, choices: Choices, start: Mapping[str, Any], draw: Callable[..., Drawn]) -> None:
    """Show what `draw` draws, under a slider for each of its arguments.

    Args:
        name: of the figure's files, which are written where it stands still.
        choices: the values that each argument can take.
        start: those that it begins with.
        draw: gives the figure and what is said of it.
    """
    if not movable():
        figure, alt, told = draw(**start)
        style.show(figure, name, alt)
        print(told)
        return

    import ipywidgets

    def redraw(**values: Any) -> None:
        figure, alt, told = draw(**values)
        style.flash(figure, alt)
        print(told)

    moved = {
        name: ipywidgets.SelectionSlider(
            options=list(of.items()),
            index=list(of.values()).index(start[name]),  # a value that is None would be no choice
            description=LABELS.get(name, name),
            continuous_update=False,
            layout={"width": "30em", "max_width": "100%"},
        )
        for name, of in choices.items()
    }
    display(ipywidgets.VBox(list(moved.values())), ipywidgets.interactive_output(redraw, moved))


def movable() -> bool:
    """Whether ipywidgets is there, and somebody who can move them: a front end that answers when it is asked.

    What executes notebooks unattended (nbclient, papermill, nbval) does not, and would only leave widgets behind that
    no page can draw.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    return find_spec("ipywidgets") is not None and bool(getattr(kernel, "_allow_stdin", False))


def over_records(seen: Seen) -> None:
    """Sliders over the records; in words that there are none."""
    if not seen.success:
        print(seen.coverage())
        return
    choices: Choices = {
        "epoch": {f"{e:g}": e for e in seen.epochs()},
        "rho": _rhos(seen.rhos),
        "eps": {words.length(eps): eps for eps in seen.radii},
        "target": {"mean of all": None, **{name: i for i, name in enumerate(seen.targets)}},
    }
    rho = seen.rfn if seen.rfn in seen.rhos else seen.rhos[0]  # chosen, it may yet be without records
    start = {"epoch": seen.epochs()[-1], "rho": rho, "eps": seen.scale.attack.eps, "target": None}

    def draw(rho: float, eps: float, epoch: float, target: int | None) -> Drawn:
        alt = "Success rate by epoch, by ρ and by ε, as far as it is recorded, with 95 % intervals; a ring marks where."
        return success(seen, rho, eps, epoch, target), alt, seen.told(rho, eps, epoch, target)

    sliders("09_records", choices, start, draw)


def success(seen: Seen, rho: float, eps: float, epoch: float, target: int | None) -> Figure:
    """Success along training, and over ρ and ε at `epoch`, with 95 % intervals and a ring where the sliders stand."""
    with style.styled():
        figure, axes = plt.subplot_mosaic([["epoch", "epoch"], ["rho", "eps"]], figsize=(style.WIDTH, 4.6))
        epochs = {e: seen.at(rho, eps, e, target) for e in seen.epochs()}
        known = {e: interval(at) for e, at in epochs.items() if at}
        colour, marker = style.kind("RFN" if rho and rho == seen.rfn else "SAM" if rho else "SGD")
        if len(known) > 2:
            style.curve(axes["epoch"], list(known), list(known.values()), colour, marker)
            style.decays(axes["epoch"], seen.scale.standard)
        else:
            _bars(axes["epoch"], known, colour, marker)
        axes["epoch"].set_xlim(0, 1.02 * seen.epochs()[-1])
        _finish(axes["epoch"], "epoch", known, epoch, f"ρ {rho:g} and ε {words.length(eps)}")
        for name, values, label in (("rho", seen.rhos, "ρ (0: SGD)"), ("eps", seen.radii, "ε")):
            across = {i: (v, eps) if name == "rho" else (rho, v) for i, v in enumerate(values)}
            there = {float(i): seen.at(r, a, epoch, target) for i, (r, a) in across.items()}
            found = {i: interval(at) for i, at in there.items() if at}
            _bars(axes[name], found, style.GREY, "o")
            said = [f"{v:g}" if name == "rho" else words.length(v) for v in values]
            axes[name].set_xticks(range(len(values)), said)
            axes[name].set_xlim(-0.5, len(values) - 0.5)
            chosen = float(values.index(rho if name == "rho" else eps))
            fixed = f"ε {words.length(eps)}" if name == "rho" else f"ρ {rho:g}"
            _finish(axes[name], label, found, chosen, f"epoch {epoch:g} and {fixed}")
    return figure


def _rhos(rhos: Iterable[float]) -> dict[str, float]:
    return {f"{rho:g}" if rho else "0 (SGD)": rho for rho in rhos}


def _bars(axis: Axes, found: Mapping[float, Estimate], colour: Any, marker: str) -> None:
    for x, at in found.items():
        reach = [[100 * max(at.value - at.low, 0)], [100 * max(at.high - at.value, 0)]]
        axis.errorbar(x, 100 * at.value, yerr=reach, fmt=marker, color=colour, markersize=5, capsize=2.5, linewidth=1.2)


def _finish(axis: Axes, label: str, found: Mapping[float, Estimate], chosen: float, fixed: str) -> None:
    """Labels, the ring at the choice, and in words what is not there."""
    axis.set(xlabel=label, ylabel="success, %", ylim=(0, 100), title=f"at {fixed}")
    if chosen in found:
        axis.plot(chosen, 100 * found[chosen].value, "o", color="black", markersize=11, fillstyle="none")
    elif found:
        axis.axvline(chosen, color="0.7", linewidth=0.8)
        axis.annotate("not recorded", (chosen, 50), rotation=90, ha="right", va="center", color=style.GREY)
    else:
        style.vacant(axis)


def over_digits(lab: Lab, attack: Callable[..., Attacked]) -> None:
    """Sliders over an attack at `lab`'s scale that is made anew at every move: `attack(rho, eps, epoch, target)`."""
    scale = lab.scale
    choices: Choices = {
        "epoch": {f"{e}": float(e) for e in range(1, scale.epochs + 1)},
        "rho": _rhos((0.0, *scale.rhos)),
        "eps": {words.length(n / 255): n / 255 for n in LEVELS},
        "target": {t.name: i for i, t in enumerate(scale.targets_of("test"))},
    }
    start = {"epoch": scale.end, "rho": scale.rhos[-1], "eps": scale.attack.eps, "target": 0}

    def draw(**values: Any) -> Drawn:
        found = attack(**values)
        return digits(found), f"Digits, their perturbations times {GAIN}, and the adversarial digits.", found.told

    sliders("09_digits", choices, start, draw)


def digits(found: Attacked) -> Figure:
    """The first attacked digits, what is added to them, and what the target sees."""
    pairs = zip(found.labels[:SHOWN].tolist(), found.after[:SHOWN].tolist(), strict=True)
    captions = [(f"a {label}", f"“{answer}”") for label, answer in pairs]
    clean, adversarial = (part[:SHOWN, 0].cpu().numpy() for part in (found.images, found.adversarial))
    return examples(clean, adversarial, captions, GAIN)
