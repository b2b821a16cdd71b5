"""Specs: keys that mean what they say, and schedules against PyTorch's."""

import json
import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from rfnlib.keys import canonical
from rfnlib.specs import (
    Adversary,
    Cosine,
    Cyclic,
    FeatureSet,
    Minimizer,
    OneCycle,
    SpecError,
    Step,
    TrainSpec,
    parse,
)

quick = settings(max_examples=80, deadline=None)
SCHEDULES = (Step, Cosine, OneCycle, Cyclic)


def spec(schedule=None, **changes) -> TrainSpec:
    values = {"data": "digits", "arch": "resnet18", "schedule": schedule or Step(), "epochs": 24}
    return TrainSpec(**{**values, **changes})


def rates(schedule, epochs: int, times) -> list[float]:
    return [schedule.at(t, epochs) for t in times]


def torch_rates(make, lr: float, n: int) -> list[float]:
    """The learning rate before each of `n` steps of the scheduler that `make` makes."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr)
    scheduler = make(optimizer)
    seen = []
    for _ in range(n):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


number = st.floats(1e-4, 10, allow_nan=False)
fraction = st.floats(0.01, 0.99)
milestones = st.lists(st.one_of(st.integers(1, 30), st.floats(0.25, 30)), max_size=3).map(tuple)
some_schedule = st.one_of(
    st.builds(Step, number, milestones, fraction, number),
    st.builds(lambda lr, f, w: Cosine(lr, lr * f, w), number, fraction, number),
    st.builds(OneCycle, number, fraction, st.floats(1, 100)),
    st.builds(lambda lr, p, f: Cyclic(lr, p, lr * f), number, number, fraction),
)
some_spec = st.builds(
    TrainSpec,
    data=st.sampled_from(["digits", "cifar10"]),
    arch=st.sampled_from(["resnet18", "vgg11"]),
    schedule=some_schedule,
    epochs=st.integers(1, 300),
    n_train=st.none() | st.integers(1, 50_000),
    width=st.none() | st.integers(1, 64),
    batch=st.integers(1, 512),
    momentum=fraction,
    weight_decay=st.floats(0, 0.1),
    nesterov=st.booleans(),
    label_smoothing=st.floats(0, 0.9),
    augment=st.booleans(),
    seed=st.integers(0, 2**31),
    label_noise=st.just(0.0) | fraction,
)

# -------------------------------------------------------------------------------------------- keys


def test_these_keys_never_change():
    # Everything computed so far is filed under such keys: to change one is to lose it all.
    assert spec(epochs=3).key() == "3023a9b0fdc99468"
    laptop = TrainSpec("cifar10", "resnet18", Step(0.05, (12, 18)), 24, n_train=12000, width=16, seed=2)
    assert laptop.key() == "c79158a56483cdc3"
    assert laptop.history_key(12 * 93, 93) == "01deda04e90201fa"
    assert spec(minimizer=Minimizer("SAM", 0.05)).key() == "cfc203038ba2c5d7"
    assert spec(adversary=Adversary("l2", 0.5)).key() == "ac2a46ad5d9059ab"
    assert spec(features=FeatureSet("inverted", spec(), steps=5)).key() == "2d570892af49323a"


def test_equal_meanings_have_equal_keys():
    same = [
        Step(1, [18, 12], gamma=0.1, warmup=0),
        Step(1.0, (12.0, 18.0)),
        Step(lr=1, milestones=(12, 18), warmup=0.0),
    ]
    assert len({spec(s).key() for s in same}) == 1
    assert spec(batch=128, seed=0, width=None, momentum=0.9).key() == spec().key()


OTHER = {
    "data": "cifar10",
    "arch": "vgg11",
    "schedule": Cosine(),
    "epochs": 25,
    "n_train": 10,
    "width": 8,
    "batch": 64,
    "momentum": 0.5,
    "weight_decay": 0.0,
    "nesterov": True,
    "label_smoothing": 0.1,
    "augment": False,
    "seed": 1,
    "minimizer": Minimizer("SAM", 0.05),
    "adversary": Adversary("l2", 0.5),
    "features": FeatureSet("inverted", spec(), steps=5),
    "start": spec(),
    "witness": spec(),
    "input_penalty": 0.1,
    "stem": 2,
    "skip": 10,
    "label_noise": 0.2,
}
WITH = {"skip": {"n_train": 20}}  # fields without which another makes no sense


def test_every_field_of_a_training_spec_is_in_its_key():
    assert set(OTHER) == {f.name for f in fields(TrainSpec)}  # a new field belongs in this test too
    changed = [replace(spec(), **{name: value, **WITH.get(name, {})}) for name, value in OTHER.items()]
    assert len({s.key() for s in [spec(), *changed]}) == len(OTHER) + 1
    # Nothing but `epochs` of a step schedule (see below) is left out of the history.
    later = {s.history_key(10, 10) for s in [spec(), *changed]}
    assert len(later) == len(OTHER)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_every_field_of_a_schedule_is_in_the_key(kind):
    changed = []
    for field in fields(kind):
        old = getattr(kind(), field.name)
        new = (5,) if isinstance(old, tuple) else old * 0.5 if old else 0.01
        changed.append(replace(kind(), **{field.name: new}))
    keys = {spec(s).key() for s in [kind(), *changed]}
    assert len(keys) == len(changed) + 1


def test_schedules_of_different_classes_with_equal_fields_have_different_keys():
    assert len({spec(kind(lr=0.3)).key() for kind in SCHEDULES}) == len(SCHEDULES)


@quick
@given(some_spec)
def test_a_described_spec_is_json_that_parses_back_to_itself(one):
    again = parse(json.loads(json.dumps(one.describe())))
    assert again == one and again.key() == one.key()
    assert set(one.describe()) == {f.name for f in fields(TrainSpec)}


@quick
@given(some_spec, some_spec)
def test_specs_share_a_key_only_when_equal(a, b):
    assert (a.key() == b.key()) == (a == b)
    json.dumps(canonical(a), allow_nan=False)


@pytest.mark.parametrize(
    "damage",
    [
        {"learning_rate": 1},
        {"schedule": {"is": "Step", "lr": 0.1, "gama": 0.5}},
        {"schedule": {"is": "Linear"}},
        {"schedule": {"lr": 0.1}},
        {"schedule": {"is": "Step", "lr": "fast"}},
        {"schedule": None},
        {"schedule": []},
        {"epochs": 2.5},
        {"batch": None},
    ],
    ids=str,
)
def test_a_description_with_a_wrong_field_does_not_parse(damage):
    with pytest.raises(SpecError):
        parse({**spec().describe(), **damage})


def test_a_description_that_lacks_a_field_does_not_parse():
    for name in ("data", "arch", "schedule", "epochs"):
        plain = spec().describe()
        del plain[name]
        with pytest.raises(SpecError, match=name):
            parse(plain)


def test_which_images_and_labels_are_fields_like_any_other_and_leave_older_keys_alone():
    """Snapshots and records are filed under these: with other keys all of them are lost."""
    assert spec(n_train=100).key() == spec(n_train=100, skip=0, label_noise=0.0).key() == "e2bfe7909cb74cde"
    assert spec(n_train=100).history_key(7, 10) == "b7b83d0697221b2e"
    others = [spec(n_train=100), spec(n_train=100, skip=50), spec(n_train=100, label_noise=0.2), spec(augment=False)]
    assert len({s.key() for s in others}) == len({s.history_key(1, 10) for s in others}) == len(others)
    assert [s.traits for s in others] == [[], ["100after50"], ["noise0.2"], ["plain"]]
    for one in others:
        assert parse(json.loads(json.dumps(one.describe()))) == one


def test_the_seed_is_part_of_the_cut_where_labels_are_replaced_and_only_there():
    assert spec(seed=3).cut == spec(seed=4).cut == (None, 0, 0.0, 0)
    assert spec(seed=3, label_noise=0.2).cut != spec(seed=4, label_noise=0.2).cut


# ----------------------------------------------------------------------------------------- history


def test_a_decayed_run_shares_its_history_with_a_constant_one_up_to_the_milestone():
    per_epoch, m = 93, 12
    constant, decayed = spec(Step(0.05)), spec(Step(0.05, (m, 18)), epochs=30)
    for i, shared in [(1, True), (m * per_epoch, True), (m * per_epoch + 1, False)]:
        equal = constant.history_key(i, per_epoch) == decayed.history_key(i, per_epoch)
        assert equal == shared, i
    once = spec(Step(0.05, (m,)))
    assert once.history_key(18 * 93, 93) == decayed.history_key(18 * 93, 93)
    assert once.history_key(18 * 93 + 1, 93) != decayed.history_key(18 * 93 + 1, 93)


def test_histories_of_different_lengths_differ():
    assert len({spec().history_key(i, 10) for i in range(1, 40)}) == 39


def test_runs_whose_rates_depend_on_their_length_share_no_history():
    for kind in (Cosine, OneCycle):
        short, long = spec(kind(), epochs=20), spec(kind(), epochs=21)
        assert short.history_key(1, 10) != long.history_key(1, 10)


@settings(max_examples=300, deadline=None)
@given(milestones, milestones, st.integers(1, 13), st.data())
@example((0.3,), (), 10, None)
def test_runs_that_share_a_history_had_the_same_rates(first, second, per_epoch, data):
    i = 3 if data is None else data.draw(st.integers(1, 30 * per_epoch))
    a, b = spec(Step(0.1, first), epochs=40), spec(Step(0.1, (*first[:1], *second)))
    if a.history_key(i, per_epoch) == b.history_key(i, per_epoch):
        for j in range(i):
            assert a.schedule.at(j / per_epoch, 40) == b.schedule.at(j / per_epoch, 24)


# --------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize("per_epoch", [1, 7, 93])
def test_step_is_multistep_lr_step_for_step(per_epoch):
    n = 20 * per_epoch
    expected = torch_rates(lambda o: lr_scheduler.MultiStepLR(o, [6 * per_epoch, 11 * per_epoch], 0.2), 0.3, n)
    got = rates(Step(0.3, (6, 11), 0.2), 20, (i / per_epoch for i in range(n)))
    assert got == pytest.approx(expected, rel=1e-12)


def test_cosine_is_cosine_annealing_lr_at_whole_epochs():
    expected = torch_rates(lambda o: lr_scheduler.CosineAnnealingLR(o, 30, eta_min=0.01), 0.3, 31)
    assert rates(Cosine(0.3, 0.01), 30, range(31)) == pytest.approx(expected, rel=1e-9)


def test_cyclic_is_cosine_annealing_with_warm_restarts():
    expected = torch_rates(lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5 * 8, eta_min=0.02), 0.3, 17 * 8)
    times = (i / 8 for i in range(17 * 8))
    assert rates(Cyclic(0.3, 5, 0.02), 17, times) == pytest.approx(expected, rel=1e-9)


def test_one_cycle_is_one_cycle_lr_where_their_last_steps_are_aligned():
    # PyTorch peaks at step pct_start·N − 1 and ends at step N − 1: give it N with that in mind.
    peak, end = 30, 100
    ours = rates(OneCycle(0.4, peak / end, 10), 1, (i / end for i in range(end + 1)))
    theirs = torch_rates(
        lambda o: lr_scheduler.OneCycleLR(
            o,
            0.4,
            total_steps=end + 1,
            pct_start=(peak + 1) / (end + 1),
            anneal_strategy="linear",
            cycle_momentum=False,
            div_factor=10,
            final_div_factor=1e12,
        ),
        0.4,
        end,
    )
    assert ours[:end] == pytest.approx(theirs, rel=1e-9)
    assert (ours[0], ours[peak], ours[end]) == pytest.approx((0.04, 0.4, 0.0))


def test_warm_up_rises_linearly_and_then_leaves_the_schedule_alone():
    for kind in (Step, Cosine):
        got = rates(kind(0.5, warmup=2), 10, [0, 0.5, 1, 1.5])
        plain = [0.5 * (t + 1e-3) / 2 for t in (0, 0.5, 1, 1.5)]
        assert got == pytest.approx(plain)
    times = [2, 3.5, 7]
    assert rates(Step(0.5, (5,), warmup=2), 10, times) == rates(Step(0.5, (5,)), 10, times)
    later = rates(Cosine(0.5, warmup=2), 10, times)
    assert later == pytest.approx(rates(Cosine(0.5), 8, [t - 2 for t in times]))


def built(method: str = "inverted", **fields) -> FeatureSet:
    return FeatureSet(method, **{"model": spec(), "steps": 5, **fields})


def built_on(model: TrainSpec) -> TrainSpec:
    return spec(features=built(model=model))


def test_a_built_set_is_part_of_the_spec_and_comes_back_from_json():
    robust = built(model=spec(adversary=Adversary("l2", 0.5)))
    towards = [built(method, eps=0.5, seed=3) for method in ("random-label", "next-label")]
    sets = [None, robust, built(), built(steps=6), built(step=0.2), built(seed=1), *towards]
    specs = [spec(features=features) for features in sets]
    assert len({s.key() for s in specs}) == len({s.history_key(1, 10) for s in specs}) == len(specs)
    for s in specs:
        assert parse(json.loads(json.dumps(s.describe()))) == s
    assert [f.name for f in (robust, built(), *towards)] == ["D_R", "D_NR", "D_rand", "D_det"]
    assert specs[1].traits == ["D_R"] and robust.model.traits == ["pgd7-l2-0.5"] and spec().traits == []


ONWARDS = {
    "start": spec(start=spec(seed=3)),
    "a start of its own": spec(start=spec(start=spec(seed=3))),
    "another start": spec(start=spec(seed=4)),
    "witness": spec(witness=spec(arch="vgg11", width=8, adversary=Adversary("l2", 0.5))),
    "the start as witness": spec(witness=spec(seed=3)),
    "both": spec(start=spec(seed=3), witness=spec(schedule=Cyclic())),
    "penalty": spec(input_penalty=0.1),
    "another penalty": spec(input_penalty=0.2),
    "everything": spec(
        Step(0.05, (3, 8)),
        start=spec(OneCycle(), minimizer=Minimizer("GNP", 0.1, options=(("alpha", 2.0),)), features=built()),
        features=built(),
        input_penalty=1,
    ),
    "under a built set": built_on(spec(start=spec(Step(0.1, (3,))), witness=spec(Cosine()))),
}


@pytest.mark.parametrize("one", ONWARDS.values(), ids=ONWARDS.keys())
def test_a_run_that_builds_on_others_comes_back_from_json(one):
    again = parse(json.loads(json.dumps(one.describe())))
    assert again == one and again.key() == one.key()
    assert set(one.describe()) == {f.name for f in fields(TrainSpec)}


def test_runs_that_build_on_others_are_told_apart():
    every = [spec(), *ONWARDS.values()]
    assert len({s.key() for s in every}) == len({s.history_key(10, 10) for s in every}) == len(every)
    assert len({tuple(s.traits) for s in every[:-1]}) == len(every) - 1  # the last is named by its set alone
    assert ONWARDS["penalty"].traits == ["ir0.1"]
    assert ONWARDS["both"].traits == [f"from-{spec(seed=3).key()[:4]}", f"as-{spec(Cyclic()).key()[:4]}"]
    assert ONWARDS["everything"].traits == ["ir1", f"from-{ONWARDS['everything'].start.key()[:4]}", "D_NR"]


def test_a_start_of_any_length_is_part_of_the_history():
    """Not so with the run's own epochs: how long the start was trained decides where this run begins."""
    assert spec(start=spec(), epochs=9).history_key(10, 10) == spec(start=spec()).history_key(10, 10)
    assert spec(start=spec(epochs=9)).history_key(10, 10) != spec(start=spec()).history_key(10, 10)


def test_a_witness_may_be_of_any_architecture_and_a_run_of_any_length_may_be_a_start():
    assert spec(witness=spec(arch="vgg11", width=8, seed=2)).witness.arch == "vgg11"
    longer = spec(Cosine(), epochs=99, batch=7, minimizer=Minimizer("SAM", 0.1), label_smoothing=0.1)
    assert spec(start=longer).start == longer


def test_what_is_left_at_its_default_is_in_no_key_and_may_lack_in_a_description():
    new = ("start", "witness", "input_penalty", "skip", "label_noise")
    for one in [spec(), *(replace(spec(), **{name: OTHER[name]}) for name in OTHER if name not in new)]:
        assert not set(new) & canonical(one).keys()
        assert parse({k: v for k, v in one.describe().items() if k not in new}) == one
    assert spec(start=None, witness=None, input_penalty=0).key() == spec().key()


@quick
@given(some_schedule, st.integers(1, 40), st.floats(0, 1))
def test_a_rate_is_never_negative_and_never_above_lr(schedule, epochs, part):
    rate = schedule.at(part * epochs, epochs)
    assert 0 <= rate <= schedule.lr * (1 + 1e-12) and math.isfinite(rate)


WRONG = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.just(10**400),
    st.floats(),
    st.complex_numbers(max_magnitude=9),
    st.text(max_size=3),
    st.sampled_from(
        ["0.9", "no", "SAM", "../up", b"1", (), [], {}, [1.0], ["a"], (("a",),), {"a": object()}, object(), len, int]
    ),
    st.sampled_from([Step(), Minimizer("SAM", 0.1), Adversary("l2", 0.5), Step, [Step()]]),
)
EXAMPLES = [
    *(kind() for kind in SCHEDULES),
    Minimizer("GNP", 0.1, options=(("alpha", 2.0),)),
    Adversary("l2", 0.5),
    built(),
    built("next-label", eps=0.5),
    spec(),
]
FIELDS = [(one, f.name) for one in EXAMPLES for f in fields(one)]


@settings(max_examples=1500, deadline=None)
@given(st.sampled_from(FIELDS), WRONG)
@example((spec(), "augment"), "no")
@example((spec(), "data"), [])
@example((spec(), "momentum"), "0.9")
def test_any_value_of_any_field_is_a_spec_that_works_or_a_spec_error(field, value):
    """augment="no" used to count as true, data=[] to be accepted, and momentum="0.9" to end in a TypeError."""
    one, name = field
    try:
        changed = replace(one, **{name: value})
    except SpecError as error:
        assert str(error).endswith(".") and "\n" not in str(error)
        return
    place = {Minimizer: "minimizer", Adversary: "adversary", FeatureSet: "features"}
    whole = changed if isinstance(changed, TrainSpec) else None
    if not whole:
        model = changed.model if isinstance(changed, FeatureSet) else spec()
        kind = place.get(type(changed), "schedule")
        whole = replace(spec(), data=model.data, n_train=model.n_train, **{kind: changed})
    again = parse(json.loads(json.dumps(whole.describe(), allow_nan=False)))
    assert again == whole and again.key() == whole.key() and again.traits == whole.traits
    if kind_of(value) is not kind_of(getattr(one, name)):
        assert allowed(one, name, value), f"{type(one).__name__}.{name} takes {value!r}"


def kind_of(value) -> type:
    numbers = isinstance(value, int | float) and not isinstance(value, bool)
    return float if numbers else tuple if isinstance(value, list | dict) else type(value)


def allowed(one, name: str, value) -> bool:
    """Whether a field may hold another kind of value than it does in `one`."""
    hint = type(one).__annotations__[name]
    return {type(None): "None" in hint, float: "float" in hint or "int" in hint}.get(
        kind_of(value), type(value).__name__ in hint or hint.startswith("Schedule")
    )


@pytest.mark.parametrize("damage", [{"minimizer": 0}, {"features": []}, {"start": ""}, {"adversary": False}], ids=str)
def test_a_false_part_of_a_description_is_not_taken_for_none(damage):
    with pytest.raises(SpecError):
        parse({**spec().describe(), **damage})


@pytest.mark.parametrize("plain", [None, [], "spec", 3, {}, {"schedule": {"is": []}}, {1: 2, **spec().describe()}])
def test_what_is_no_description_is_a_spec_error(plain):
    with pytest.raises(SpecError):
        parse(plain)


@pytest.mark.parametrize(
    "make, named",
    [
        (lambda: Step(lr=0), "lr is 0;"),
        (lambda: Step(lr="0.1"), "lr is '0.1'; give a positive learning rate."),
        (lambda: Step(milestones=3), "milestones are 3; give a tuple of epochs after 0."),
        (lambda: Step(milestones=("3",)), "milestones are ('3',);"),
        (lambda: spec(augment="no"), "augment is 'no'; give True or False."),
        (lambda: spec(nesterov=1), "nesterov is 1; give True or False."),
        (lambda: spec(data=[]), "data is []; give a name"),
        (lambda: spec(arch="x/../../../esc"), "arch is 'x/../../../esc'; give a name of letters, digits, hyphens"),
        (lambda: spec(momentum="0.9"), "momentum is '0.9'; give a number in [0, 1)."),
        (lambda: Minimizer("SAM", 0.1, options="alpha"), "options are 'alpha'; give different pairs"),
        (lambda: Minimizer("SAM", 0.1, options=(("a", len),)), "options are (('a', <built-in function len>),)"),
        (lambda: Cosine(lr=math.nan), "lr is nan;"),
        (lambda: OneCycle(lr=math.inf), "lr is inf;"),
        (lambda: Cyclic(lr=-0.1), "lr is -0.1;"),
        (lambda: Step(gamma=1.5), "gamma is 1.5;"),
        (lambda: Step(gamma=0), "gamma is 0;"),
        (lambda: Step(milestones=(0, 3)), "milestones are (0, 3);"),
        (lambda: Step(warmup=-1), "warmup is -1;"),
        (lambda: Cosine(warmup=math.inf), "warmup is inf;"),
        (lambda: Cosine(final=0.2), "final is 0.2;"),
        (lambda: OneCycle(peak=1.0), "peak is 1.0;"),
        (lambda: OneCycle(start=0.5), "start is 0.5;"),
        (lambda: Cyclic(period=0), "period is 0;"),
        (lambda: Cyclic(low=0.5), "low is 0.5;"),
        (lambda: spec("cosine"), "schedule is 'cosine';"),
        (lambda: spec(epochs=0), "epochs is 0;"),
        (lambda: spec(epochs=2.0), "epochs is 2.0;"),
        (lambda: spec(epochs=True), "epochs is True;"),
        (lambda: spec(batch=-1), "batch is -1;"),
        (lambda: spec(seed=-1), "seed is -1;"),
        (lambda: spec(n_train=0), "n_train is 0;"),
        (lambda: spec(width=1.5), "width is 1.5;"),
        (lambda: spec(momentum=1.0), "momentum is 1.0;"),
        (lambda: spec(weight_decay=-1e-4), "weight_decay is -0.0001;"),
        (lambda: spec(weight_decay=math.inf), "weight_decay is inf;"),
        (lambda: spec(label_smoothing=1), "label_smoothing is 1;"),
        (lambda: spec(nesterov=True, momentum=0), "nesterov"),
        (lambda: spec(features="D_R"), "features is 'D_R';"),
        (lambda: spec(skip=10), "skip is 10 without n_train; say how many"),
        (lambda: spec(skip=-1, n_train=10), "skip is -1; give an integer of at least 0"),
        (lambda: spec(label_noise=1.0), "label_noise is 1.0; give a number in [0, 1)."),
        (lambda: spec(start=spec(n_train=10, skip=10), n_train=10), "start is trained on other images;"),
        (lambda: spec(start=spec(label_noise=0.2, seed=1), label_noise=0.2), "start is trained on other images;"),
        (lambda: spec(features=built(), label_noise=0.2), "features are"),
        (lambda: spec(features=built(), n_train=77), "features are those of a network trained on other images;"),
        (lambda: spec(start="last"), "start is 'last'; give a TrainSpec, or None for new weights."),
        (lambda: spec(witness=Step()), "witness is Step("),
        (lambda: spec(start=spec(data="cifar10")), "start is trained on other images;"),
        (lambda: spec(start=spec(n_train=77)), "start is trained on other images;"),
        (lambda: spec(start=spec(features=built())), "start is trained on other images;"),
        (lambda: spec(witness=spec(data="cifar10")), "witness is trained on other images;"),
        (lambda: spec(witness=spec(n_train=77)), "witness is trained on other images;"),
        (lambda: spec(witness=spec(), features=built()), "witness is trained on other images;"),
        (lambda: spec(start=spec(arch="vgg11")), "start is of another architecture, width or stem,"),
        (lambda: spec(start=spec(width=8)), "start is of another architecture, width or stem,"),
        (lambda: spec(input_penalty=-0.1), "input_penalty is -0.1; give a number of 0 or more."),
        (lambda: spec(input_penalty=math.nan), "input_penalty is nan;"),
        (lambda: spec(input_penalty=math.inf), "input_penalty is inf;"),
        (lambda: spec(input_penalty="0.1"), "input_penalty is '0.1';"),
        (lambda: spec(input_penalty=True), "input_penalty is True;"),
        (lambda: spec(witness=spec(), input_penalty=0.1), "a witness takes the place of the labels;"),
        (lambda: spec(witness=spec(), label_smoothing=0.1), "a witness takes the place of the labels;"),
        (lambda: built("noise"), "method is 'noise';"),
        (lambda: built(model="resnet18"), "model is 'resnet18';"),
        (lambda: built(steps=0), "steps is 0;"),
        (lambda: built(step=0.0), "step is 0.0;"),
        (lambda: built(eps=0.5), "eps is 0.5 with inverted; give None"),
        (lambda: built("next-label"), "eps is None with next-label;"),
        (lambda: built(seed=-1), "seed is -1;"),
    ],
)
def test_a_bad_value_gives_one_sentence_that_names_it(make, named):
    with pytest.raises(SpecError) as error:
        make()
    message = str(error.value)
    assert named in message and message.endswith(".") and "\n" not in message
