"""``to_plain_lora``: its error against dense matrices, what it rejects, what it leaves on disk."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import nets
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sdslora import SdsLoraConfig, to_plain_lora
from sdslora.export import PlainLoraExport, plain_lora
from sdslora.export.whole_directory import whole_directory
from sdslora.tuner import refresh_bases
from sdslora.tuner.registration import PEFT_SAVES_BY_HOOK
from toys import dense_delta, logits, make_llama, sds_layers, sds_model, train


def trained(steps: int = 9, **options: object) -> nn.Module:
    model = sds_model(make_llama(), **options)
    train(model, steps)
    return model


def exported_deltas(folder: Path, scaling: float = 1.0) -> dict[str, Tensor]:
    """ΔW of every layer, as the files say, in float64."""
    tensors = load_file(folder / "adapter_model.safetensors")
    names = [key.removesuffix(".lora_A.weight") for key in tensors if "lora_A" in key]
    return {
        name.removeprefix("base_model.model."): scaling
        * tensors[f"{name}.lora_B.weight"].double()
        @ tensors[f"{name}.lora_A.weight"].double()
        for name in names
    }


# --- the approximation


@pytest.mark.parametrize("rank", [1, 3, 4, 5, 7, "compact"])
@pytest.mark.parametrize("steps", [2, 9], ids=["warm-up", "main stage"])
def test_the_error_is_the_smallest_possible(tmp_path, steps, rank):
    """Eckart-Young, on dense matrices in float64: of the files, and of the report."""
    model = trained(steps)
    done = to_plain_lora(model, tmp_path / "plain", rank)
    kept = 4 if rank == "compact" else rank
    errors = []
    deltas = exported_deltas(tmp_path / "plain")
    assert deltas.keys() == sds_layers(model).keys()
    for name, layer in sds_layers(model).items():
        delta = dense_delta(layer)
        best = torch.linalg.svdvals(delta)[kept:].norm()
        made = (deltas[name] - delta).norm()
        torch.testing.assert_close(made, best, rtol=1e-4, atol=1e-6 * delta.norm().item())
        errors.append((made / delta.norm()).item())
    assert done.relative_error == pytest.approx(max(errors), rel=1e-4, abs=1e-6)
    assert done.rank == min(kept, 4 if steps == 2 else 8)
    if steps == 9 and kept < 8:
        assert done.relative_error > 1e-4  # there was something to approximate


def test_an_adapter_that_does_nothing_yet(tmp_path):
    """ΔW = 0, of which no share can be lost."""
    assert to_plain_lora(trained(0), tmp_path / "plain", 2).relative_error == 0
    assert all(not delta.any() for delta in exported_deltas(tmp_path / "plain").values())


def test_a_float64_adapter_keeps_its_digits(tmp_path):
    model = sds_model(make_llama().double(), target_modules=["q_proj"])
    train(model)
    assert to_plain_lora(model, tmp_path / "plain", 8).relative_error < 1e-14
    for name, delta in exported_deltas(tmp_path / "plain").items():
        expected = dense_delta(sds_layers(model)[name])
        torch.testing.assert_close(delta, expected, atol=1e-14, rtol=0)


def test_the_model_is_left_as_it_was(tmp_path, input_ids):
    model = trained()
    before, state = logits(model, input_ids), {k: v.clone() for k, v in model.state_dict().items()}
    for rank in ("exact", "compact", 3):
        to_plain_lora(model, tmp_path / str(rank), rank)
    assert torch.equal(logits(model, input_ids), before)
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert type(model.peft_config["default"]) is SdsLoraConfig


class LargestNewTensor(TorchDispatchMode):
    """The elements of the largest tensor made, those that share memory with ``known`` aside."""

    def __init__(self, known: nn.Module) -> None:
        super().__init__()
        tensors = known.state_dict(keep_vars=True).values()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple | list) else [result]
        for tensor in results:
            new = isinstance(tensor, Tensor)
            if new and tensor.untyped_storage().data_ptr() not in self.known:
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.mark.parametrize("rank", ["exact", "compact", 1])
def test_no_matrix_of_the_layers_size_is_formed(tmp_path, rank):
    torch.manual_seed(0)
    m, n, r = 300, 400, 2
    config = SdsLoraConfig(r=r, target_modules=["0"], warmup_steps=1)
    model = get_peft_model(nn.Sequential(nn.Linear(n, m)), config)
    x = torch.randn(5, n)
    train(model, 3, loss=lambda model: (model(x) - 1).square().mean())
    with LargestNewTensor(model) as seen:
        to_plain_lora(model, tmp_path / "plain", rank)
    assert 0 < seen.largest <= 2 * r * max(m, n)


def test_what_the_watch_would_see():
    model = nn.Linear(40, 30)
    with LargestNewTensor(model) as seen:
        model.weight.detach()
        assert seen.largest == 0
        model.weight.detach() * 2
    assert seen.largest == 1200


# --- which adapter


def two_adapters() -> nn.Module:
    model = trained()
    model.add_adapter("second", SdsLoraConfig(r=2, target_modules=["q_proj"], warmup_steps=3))
    model.set_adapter("second")
    train(model, 6)
    return model


def check_is(folder: Path, model: nn.Module, adapter: str) -> None:
    deltas = exported_deltas(folder)
    layers = sds_layers(model, adapter)
    assert deltas.keys() == layers.keys()
    for name, layer in layers.items():
        torch.testing.assert_close(deltas[name], dense_delta(layer, adapter), atol=1e-5, rtol=0)


def test_the_active_adapter_by_default_and_any_by_name(tmp_path):
    model = two_adapters()
    to_plain_lora(model, tmp_path / "active")
    check_is(tmp_path / "active", model, "second")
    to_plain_lora(model, tmp_path / "named", adapter="default")
    check_is(tmp_path / "named", model, "default")
    model.set_adapter("default")
    to_plain_lora(model, tmp_path / "other")
    check_is(tmp_path / "other", model, "default")


def test_a_model_with_injected_adapters(tmp_path, monkeypatch):
    """Transformers' own ``add_adapter``: no PeftModel, and no ``active_adapter``."""
    # transformers 5.24 asks for a PEFT that is not released; what it does works with this one
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.20.0")
    model = make_llama()
    model.add_adapter(SdsLoraConfig(r=2, target_modules=["q_proj"], warmup_steps=3), "first")
    train(model, 6)
    to_plain_lora(model, tmp_path / "only")
    check_is(tmp_path / "only", model, "first")
    model.add_adapter(SdsLoraConfig(r=2, target_modules=["v_proj"], warmup_steps=3), "second")
    train(model, 6)
    to_plain_lora(model, tmp_path / "active")
    check_is(tmp_path / "active", model, "second")
    to_plain_lora(model, tmp_path / "named", adapter="first")
    check_is(tmp_path / "named", model, "first")


def test_an_adapter_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"no adapter 'third'.*\['default', 'second'\]"):
        to_plain_lora(two_adapters(), tmp_path / "plain", adapter="third")
    assert not list(tmp_path.iterdir())


def test_a_model_without_adapters(tmp_path):
    with pytest.raises(ValueError, match="adapter"):
        to_plain_lora(make_llama(), tmp_path / "plain")


def test_another_methods_adapter(tmp_path):
    model = get_peft_model(make_llama(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="it is not an SDS-LoRA adapter"):
        to_plain_lora(model, tmp_path / "plain")
    assert not list(tmp_path.iterdir())


class Wrapper(nn.Module):
    """As DistributedDataParallel is: the model stands in ``module``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def wrapped_by_hand(model: nn.Module) -> nn.Module:
    return Wrapper(model)


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize("wrap", [wrapped_by_hand, compiled])
def test_a_wrapped_model_gives_the_same_file(tmp_path, wrap):
    model = trained()
    to_plain_lora(model, tmp_path / "bare")
    to_plain_lora(wrap(model), tmp_path / "wrapped")
    bare, wrapped = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("bare", "wrapped")
    )
    assert bare.keys() == wrapped.keys()
    assert all(torch.equal(bare[key], wrapped[key]) for key in bare)


# --- rejections, and what is left on disk


@pytest.mark.parametrize("rank", [0, -1, True, 2.0, "small", None])
def test_bad_ranks(tmp_path, rank):
    with pytest.raises(ValueError, match="'exact', 'compact' or a positive integer, not"):
        to_plain_lora(trained(0), tmp_path / "plain", rank)
    assert not list(tmp_path.iterdir())


def test_a_directory_that_holds_something(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is not empty: choose another"):
        to_plain_lora(trained(0), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_in_its_place(tmp_path):
    (tmp_path / "plain").write_text("mine")
    with pytest.raises(FileExistsError):
        to_plain_lora(trained(0), tmp_path / "plain")
    assert (tmp_path / "plain").read_text() == "mine"


def test_an_empty_directory_and_missing_parents(tmp_path):
    (tmp_path / "empty").mkdir()
    model = trained(0)
    for folder in (tmp_path / "empty", tmp_path / "a" / "b" / "c"):
        done = to_plain_lora(model, str(folder))
        assert done.path == folder
        assert sorted(os.listdir(folder)) == ["adapter_config.json", "adapter_model.safetensors"]
    assert sorted(os.listdir(tmp_path)) == ["a", "empty"]


def test_a_link_to_an_empty_directory(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    to_plain_lora(trained(0), tmp_path / "link")
    assert (tmp_path / "disk" / "adapter_config.json").exists()


def test_the_current_directory_may_be_where_it_goes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    to_plain_lora(trained(0), "plain")
    assert (tmp_path / "plain" / "adapter_config.json").exists()


def test_the_directory_has_the_usual_permissions(tmp_path):
    to_plain_lora(trained(0), tmp_path / "plain")
    (tmp_path / "usual").mkdir()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "usual")}
    assert len(modes) == 1


@pytest.fixture
def full_disk(monkeypatch) -> None:
    """Writing stops after half a file."""

    def save_file(tensors, path, metadata=None):
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(plain_lora, "save_file", save_file)


@pytest.mark.parametrize("before", ["absent", "empty"])
def test_interrupted_writing_leaves_nothing_behind(tmp_path, full_disk, before):
    if before == "empty":
        (tmp_path / "plain").mkdir()
    with pytest.raises(OSError, match="No space left"):
        to_plain_lora(trained(0), tmp_path / "plain")
    if before == "empty":
        assert not list((tmp_path / "plain").iterdir())
        (tmp_path / "plain").rmdir()
    assert not list(tmp_path.iterdir())


def test_nothing_stands_under_the_name_before_it_is_whole(tmp_path):
    target = tmp_path / "result"

    def write(stop: type[BaseException] | None = None) -> None:
        with whole_directory(target) as folder:
            (folder / "first").write_text("x")
            assert not target.exists()
            if stop is not None:
                raise stop

    with pytest.raises(KeyboardInterrupt):
        write(KeyboardInterrupt)
    assert not list(tmp_path.iterdir())
    write()
    assert os.listdir(target) == ["first"]
    assert os.listdir(tmp_path) == ["result"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_files_follow_the_umask(tmp_path, umask):
    """Safetensors creates files that only their owner can read."""
    before = os.umask(umask)
    try:
        to_plain_lora(trained(0), tmp_path / "plain")
    finally:
        os.umask(before)
    files = list((tmp_path / "plain").iterdir())
    assert {oct(file.stat().st_mode & 0o777) for file in files} == {oct(0o666 & ~umask)}
    assert (tmp_path / "plain").stat().st_mode & 0o777 == 0o777 & ~umask


def test_what_was_put_there_meanwhile_is_kept(tmp_path):
    target = tmp_path / "result"

    def write() -> None:
        with whole_directory(target) as folder:
            (folder / "first").write_text("ours")
            target.mkdir()
            (target / "theirs").write_text("theirs")

    with pytest.raises(OSError, match="not empty"):
        write()
    assert os.listdir(tmp_path) == ["result"]
    assert os.listdir(target) == ["theirs"]


# --- the report


@pytest.mark.parametrize(
    ("rank", "legal"),
    [
        (1, 8), (8, 8), (9, 16), (16, 16), (17, 32), (33, 64), (64, 64), (65, 128), (129, 256),
        (256, 256), (257, 320), (320, 320), (321, 512), (512, 512), (513, None), (1000, None),
    ],
)  # fmt: skip
def test_the_smallest_rank_that_vllm_takes(rank, legal):
    done = PlainLoraExport(Path("x"), rank, 0.0)
    assert done.max_lora_rank == legal
    assert ("no legal rank above 512" if legal is None else f"max_lora_rank={legal}") in str(done)


def test_the_report_reads_well(tmp_path):
    done = to_plain_lora(trained(), tmp_path / "plain", "compact")
    assert str(done) == (
        f"plain LoRA adapter of rank 4 in {tmp_path / 'plain'}: relative error "
        f"{done.relative_error:.2e}; for vLLM, max_lora_rank=8"
    )


def test_compact_is_exact_only_after_a_final_refresh(tmp_path):
    model = trained()
    assert to_plain_lora(model, tmp_path / "before", "compact").relative_error > 1e-3
    refresh_bases(model, "default", "qr")
    assert to_plain_lora(model, tmp_path / "after", "compact").relative_error < 1e-6


def test_the_configuration_of_an_integer_rank(tmp_path):
    to_plain_lora(trained(), tmp_path / "plain", 3)
    config = json.loads((tmp_path / "plain" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (3, 3, {})


def test_the_file_says_what_it_is_for(tmp_path):
    """Loaders of Hugging Face look at this entry before anything else."""
    to_plain_lora(trained(0), tmp_path / "plain")
    with safe_open(tmp_path / "plain" / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_modules_to_save_may_be_strided(tmp_path):
    model = sds_model(make_llama(), target_modules=["q_proj"], modules_to_save=["lm_head"])
    head = model.base_model.model.lm_head.modules_to_save["default"].weight
    head.data = head.data.mT.contiguous().mT
    to_plain_lora(model, tmp_path / "plain")
    tensors = load_file(tmp_path / "plain" / "adapter_model.safetensors")
    assert torch.equal(tensors["base_model.model.lm_head.weight"], head)


@pytest.mark.skipif(
    not PEFT_SAVES_BY_HOOK, reason="PEFT 0.20 cannot save a module whose name contains 'lora_'"
)
def test_modules_to_save_whose_names_look_like_the_methods_own(tmp_path):
    """Only what stands below a layer is the method's; the user's own names are the user's."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.lora_head = nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.lora_head(torch.tanh(self.body(x)))

    torch.manual_seed(0)
    config = SdsLoraConfig(
        r=2, target_modules=["body"], modules_to_save=["lora_head"], warmup_steps=1
    )
    model = get_peft_model(Net(), config)
    x = torch.randn(4, 8)
    train(model, 3, loss=lambda model: model(x).square().mean())
    to_plain_lora(model, tmp_path / "plain")
    tensors = load_file(tmp_path / "plain" / "adapter_model.safetensors")
    saved = model.base_model.model.lora_head.modules_to_save["default"]
    assert torch.equal(tensors["base_model.model.lora_head.weight"], saved.weight)


def test_the_nets_are_the_same_in_every_process():
    first, second = nets.make("convolutions"), nets.make("convolutions")
    assert torch.equal(
        nets.outputs(first, nets.inputs(first)), nets.outputs(second, nets.inputs(second))
    )
