"""How things are computed: what "auto" comes to, and what is refused."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time

import pytest
import torch
from torch import nn

from rfnlib import execution
from rfnlib.execution import Execution, choose, resolve


@pytest.fixture
def machine(monkeypatch):
    """Pretend to be a machine: with CUDA or not, with these CPU flags, these programs on the PATH."""

    def pretend(cuda: bool = False, flags: tuple[str, ...] = (), programs: tuple[str, ...] = ()):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: cuda)
        every = {"avx2": True, "avx512_bf16": False, "amx_bf16": False} | dict.fromkeys(flags, True)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: every, raising=False)
        monkeypatch.setattr(shutil, "which", lambda n: f"/bin/{n}" if n in programs else None)
        for name in ("CXX", "TORCHDYNAMO_DISABLE"):
            monkeypatch.delenv(name, raising=False)

    return pretend


def test_auto_on_a_plain_cpu_is_fp32_channels_last_and_not_compiled(machine):
    machine()
    assert resolve() == Execution("cpu", "fp32", False, True)


def test_auto_on_a_gpu_is_cuda_in_bf16(machine):
    machine(cuda=True)
    assert resolve() == Execution("cuda", "bf16", False, True)
    assert resolve("cpu") == Execution("cpu", "fp32", False, True)


def test_auto_precision_is_bf16_where_the_cpu_gains_by_it(machine):
    machine(flags=("amx_bf16",))
    assert resolve().precision == "bf16"
    assert resolve(precision="fp32").precision == "fp32"
    machine(flags=("avx512_bf16",))
    assert resolve().precision == "fp32"
    assert resolve(precision="bf16").precision == "bf16"  # slow, but as asked


def test_a_torch_that_cannot_tell_its_flags_gets_fp32(machine, monkeypatch):
    machine()
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert resolve().precision == "fp32"


def test_emulated_bf16_on_a_gpu_does_not_count(machine, monkeypatch):
    machine(cuda=True)
    emulated = {True: True, False: False}
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: emulated[including_emulation],
    )
    assert resolve().precision == "fp32"


@pytest.mark.parametrize("compiler", ["g++", "clang++", "c++"])
def test_auto_leaves_compiling_to_choose_where_there_is_a_compiler(compiler, machine):
    machine(programs=(compiler,))
    assert resolve().compile is None
    assert resolve(compile=True).compile is True
    assert resolve(compile=False).compile is False


def test_without_a_cpp_compiler_auto_does_not_compile_and_true_is_refused(machine):
    machine(programs=("gcc",))  # a C compiler will not do
    assert resolve().compile is False
    with pytest.raises(ValueError, match=r"compile is True, but no C\+\+ compiler .* give False"):
        resolve(compile=True)


def test_the_compiler_that_cxx_names_counts(machine, monkeypatch):
    machine(programs=("my-g++",))
    assert not execution.can_compile("cpu")
    monkeypatch.setenv("CXX", "my-g++")
    assert execution.can_compile("cpu")


def test_nothing_is_compiled_where_dynamo_is_disabled(machine, monkeypatch):
    machine(programs=("g++",))
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    assert not execution.can_compile("cpu")


def test_a_gpu_needs_a_c_compiler_only(machine):
    machine(cuda=True, programs=("gcc",))
    assert execution.can_compile("cuda") and not execution.can_compile("cpu")


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("device", "gpu", "'auto', 'cpu', 'cuda'"),
        ("precision", "fp16", "'auto', 'fp32', 'bf16'"),
        ("compile", "yes", "'auto', True, False"),
        ("channels_last", None, "'auto', True, False"),
    ],
)
def test_a_value_that_is_not_allowed_is_named_with_those_that_are(name, value, allowed):
    with pytest.raises(ValueError) as refused:
        resolve(**{name: value})
    assert str(refused.value) == f"{name} is {value!r}; give one of {allowed}."


def test_cuda_is_refused_where_there_is_none(machine):
    machine()
    with pytest.raises(ValueError, match="no CUDA device here; give 'cpu' or 'auto'"):
        resolve("cuda")


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_model_is_laid_out_as_asked(channels_last):
    model = resolve("cpu", channels_last=channels_last).place(nn.Conv2d(4, 4, 3))
    last = model.weight.is_contiguous(memory_format=torch.channels_last)
    assert (last, model.weight.is_contiguous()) == (channels_last, not channels_last)


def test_autocast_is_bf16_or_nothing():
    layer, x = nn.Linear(2, 2), torch.rand(1, 2)
    with resolve("cpu", "bf16").autocast():
        assert layer(x).dtype == torch.bfloat16
    with resolve("cpu", "fp32").autocast():
        assert layer(x).dtype == torch.float32


def test_without_compiling_the_model_is_the_model():
    model = nn.Linear(2, 2)
    assert resolve("cpu", compile=False).compiled(model) is model


def test_the_description_is_json_that_names_no_host():
    how = resolve("cpu", "fp32", False, True).describe()
    assert json.loads(json.dumps(how)) == how
    assert how["torch"] == torch.__version__ and how["threads"] == torch.get_num_threads()
    assert {k: how[k] for k in ("device", "precision", "compile", "channels_last")} == {
        "device": "cpu", "precision": "fp32", "compile": False, "channels_last": True,
    }  # fmt: skip
    assert platform.node() not in how.values() and how["hardware"].startswith(platform.machine())


# --- compiling --------------------------------------------------------------------------------------


@pytest.fixture
def inductor(monkeypatch):
    """Inductor replaced by something quick, and what it was asked for: a graph to run as it is, and the settings."""
    from torch._inductor import compile_fx

    asked = []

    def quick(graph, inputs, config_patches):
        asked.append(config_patches)
        return graph.forward

    monkeypatch.setattr(compile_fx, "compile_fx", quick)
    yield asked
    torch._dynamo.reset()


def test_a4_more_than_eight_graphs_in_a_process_are_all_compiled(inductor):
    how, layers = Execution(compile=True), []
    for width in range(1, 11):  # one piece of code, as all networks of an architecture are
        layers.append(nn.Sequential(nn.Linear(width, 2)))
        forward = how.compiled(layers[-1])
        x = torch.ones(3, width)
        assert torch.equal(forward(x), layers[-1](x))
        assert len(how.graphs) == width
    for n in range(4, 14):  # batches
        forward(torch.ones(n, 10))
    assert len(how.graphs) == 20
    forward(torch.ones(7, 10))
    assert len(how.graphs) == 20  # known already: shapes are not symbolic, but they are remembered


def test_a4_a_description_says_what_was_compiled_and_not_what_was_asked_for(inductor):
    how = Execution(compile=True)
    forward = how.compiled(nn.Linear(2, 2))
    assert how.describe()["compile"] is False
    forward(torch.ones(1, 2))
    assert how.describe()["compile"] is True and Execution(compile=True).describe()["compile"] is False


def test_a5_kernels_of_one_thread_and_of_two_have_different_keys_in_the_cache_of_compiled_kernels(inductor):
    from torch._inductor import config

    threads, keys = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            Execution(compile=True).compiled(nn.Linear(2, 2))(torch.ones(1, 2))
            with config.patch(inductor[-1]):
                keys.append(config.save_config_portable(ignore_private_configs=False))  # as torch's cache has it
    finally:
        torch.set_num_threads(threads)
    assert {k for k in keys[0] if keys[0][k] != keys[1][k]} == {"cpp.threads"}


# --- choosing ---------------------------------------------------------------------------------------


class Slow(nn.Module):
    """A network whose pass takes `eager` milliseconds on the fixture `clock`, and `compiled` when compiled."""

    def __init__(self, eager: float, compiled: float) -> None:
        super().__init__()
        self.eager, self.compiled, self.head = eager, compiled, nn.Linear(4, 2)

    def forward(self, x):
        return self.head(x.flatten(1))

    def extra_repr(self):
        return f"{self.eager}, {self.compiled}"


@pytest.fixture
def clock(monkeypatch, machine):
    """A clock that a pass through `Slow` moves on, and compiling by `compiling` seconds; `compiled` counts it."""
    machine(programs=("g++",))

    class Clock:
        now, compiling, compiled = 0.0, 10.0, 0

    def compiled(self, model):
        if not self.compile:
            return model
        Clock.compiled += 1
        once = [Clock.compiling]

        def forward(x):
            Clock.now += (once.pop() if once else 0.0) + (model.compiled - model.eager) / 1e3
            return model(x)

        return forward

    plain = Slow.forward

    def tick(self, x):
        Clock.now += self.eager / 1e3
        return plain(self, x)

    monkeypatch.setattr(Execution, "compiled", compiled)
    monkeypatch.setattr(Slow, "forward", tick)
    for name in ("perf_counter", "process_time"):
        monkeypatch.setattr(time, name, lambda: Clock.now)
    return Clock


X = torch.rand(10, 1, 2, 2)


def test_choose_compiles_what_is_faster_for_as_long_as_there_is_work(clock, tmp_path):
    # 10 images a batch: eager 100 ms, compiled 50 ms, compiling 10 s, so 10,000 batches save 490 s
    assert choose(resolve("cpu"), Slow(100, 50), X, 100_000, tmp_path).compile is True
    assert choose(resolve("cpu"), Slow(100, 101), X, 100_000, tmp_path).compile is False
    clock.compiling = 600.0
    assert choose(resolve("cpu"), Slow(100, 51), X, 100_000, tmp_path).compile is False
    assert choose(resolve("cpu"), Slow(100, 51), X, 200_000, tmp_path).compile is True


def test_choose_does_not_compile_to_measure_where_the_work_could_not_repay_it(clock, tmp_path):
    assert choose(resolve("cpu"), Slow(15, 1), X, 60_000, tmp_path).compile is False  # 90 s of work
    assert clock.compiled == 0
    assert choose(resolve("cpu"), Slow(15, 1), X, 80_000, tmp_path).compile is True
    assert clock.compiled == 1


def test_choose_begins_short_work_at_once(clock, tmp_path):
    assert choose(resolve("cpu"), Slow(1e6, 1), X, execution.WORTH_MEASURING - 1, tmp_path).compile is False
    assert clock.now == 0 and not list(tmp_path.iterdir())


def test_choose_does_as_it_is_told(clock, tmp_path):
    for told in (True, False):
        assert choose(resolve("cpu", compile=told), Slow(100, 1), X, 10**9, tmp_path).compile is told
    assert clock.now == 0 and not list(tmp_path.iterdir())


def test_choose_measures_once_for_each_of_what_speed_depends_on(clock, tmp_path):
    def measured(how=None, model=None, images=X):
        before = clock.now
        choose(how or resolve("cpu"), model or Slow(100, 50), images, 10**6, tmp_path)
        return clock.now > before

    wider, frozen = Slow(100, 50), Slow(100, 50).requires_grad_(False)
    wider.extra = nn.Linear(2, 2)
    assert measured() and not measured()
    assert measured(model=wider) and measured(model=frozen) and measured(model=Slow(100, 50).eval())
    assert measured(images=X[:5]) and measured(resolve("cpu", "bf16")) and measured(resolve("cpu", channels_last=False))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert measured()
    finally:
        torch.set_num_threads(threads)
    assert not measured()


@pytest.mark.parametrize("content", ["", "{", "[1.0]", '{"eager": "1"}', '{"eager": -1.0}', '{"compiled": 1.0}', "\0"])
def test_damaged_speeds_are_measured_again(content, clock, tmp_path):
    assert choose(resolve("cpu"), Slow(100, 50), X, 10**6, tmp_path).compile is True
    (path,) = tmp_path.rglob("*.json")
    good = path.read_text()
    path.write_text(content)
    assert choose(resolve("cpu"), Slow(100, 50), X, 10**6, tmp_path).compile is True
    assert json.loads(path.read_text()) == pytest.approx(json.loads(good))


def test_choose_leaves_network_and_random_numbers_as_they_were(tmp_path, monkeypatch, inductor):
    monkeypatch.setattr(execution, "can_compile", lambda device: True)
    monkeypatch.setitem(execution.SECONDS_TO_COMPILE, "cpu", 0.0)
    model = nn.Sequential(nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(4, 2)).train()
    before, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    how = choose(resolve("cpu"), model, X, 10**9, tmp_path)
    assert how.compile in (True, False) and len(inductor) >= 1 and how.graphs == []
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random) and all(p.grad is None for p in model.parameters())


def test_where_the_compiler_fails_auto_does_without(tmp_path, monkeypatch):
    from torch._inductor import compile_fx

    def fail(*args, **kwargs):
        raise RuntimeError("g++: fatal error")

    monkeypatch.setattr(compile_fx, "compile_fx", fail)
    monkeypatch.setattr(execution, "can_compile", lambda device: True)
    monkeypatch.setitem(execution.SECONDS_TO_COMPILE, "cpu", 0.0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    assert choose(resolve("cpu"), model, X, 10**9, tmp_path).compile is False
    torch._dynamo.reset()


# --- CUDA's settings --------------------------------------------------------------------------------


def settings() -> tuple:
    cudnn = torch.backends.cudnn
    flags = (
        cudnn.allow_tf32,
        cudnn.deterministic,
        cudnn.benchmark,
        torch.utils.deterministic.fill_uninitialized_memory,
    )
    modes = (torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled())
    return *modes, torch.is_deterministic_algorithms_warn_only_enabled(), *flags


@pytest.fixture
def untouched(monkeypatch):
    """torch's switches, put back."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.delenv("RFN_DETERMINISTIC", raising=False)
    matmul, same, warn, *flags = settings()
    yield
    torch.set_float32_matmul_precision(matmul)
    torch.use_deterministic_algorithms(same, warn_only=warn)
    cudnn = torch.backends.cudnn
    cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark, torch.utils.deterministic.fill_uninitialized_memory = flags


@pytest.mark.parametrize("told", ["1", "0"])
def test_cuda_is_set_up_to_repeat_its_bits_unless_told_otherwise(told, monkeypatch, untouched):
    same = told == "1"
    if not same:
        monkeypatch.setenv("RFN_DETERMINISTIC", told)
    execution.set_up_cuda()
    assert settings() == ("high", same, True, True, same, not same, False)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_wish_for_determinism_that_is_not_understood_is_refused(monkeypatch):
    monkeypatch.setenv("RFN_DETERMINISTIC", "yes")
    with pytest.raises(ValueError, match="RFN_DETERMINISTIC is 'yes'; give 1, or 0 for speed"):
        execution.deterministic()


def test_the_cpu_is_left_as_it_is(untouched):
    before = settings()
    resolve("cpu").place(nn.Linear(2, 2))
    with execution.full_precision(torch.device("cpu")):
        assert settings() == before
    assert settings() == before


def test_full_precision_is_without_tf32_and_autocast_and_ends_as_it_began(untouched):
    execution.set_up_cuda()
    before = settings()
    with torch.autocast("cuda", torch.bfloat16, enabled=False), execution.full_precision(torch.device("cuda")):
        assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
        assert not torch.is_autocast_enabled("cuda")
    assert settings() == before
    with torch.autocast("cpu", torch.bfloat16), execution.full_precision(torch.device("cpu")):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32
