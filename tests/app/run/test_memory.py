import pytest
import torch

import tiny
from sdslora.app.config.parsing import parse
from sdslora.app.config.spec import TrainSpec
from sdslora.app.models import trained_adapter
from sdslora.app.run import memory, plan
from tiny import MakeRecipe

BATCH, TOKENS = 8, 9


@pytest.fixture
def prepared(recipe: MakeRecipe, tmp_path) -> plan.Plan:
    model = tiny.save_model(tmp_path / "model", hidden_size=64, intermediate_size=192)
    path = recipe(model__name_or_path=str(model), training__per_device_train_batch_size=BATCH)
    return plan.make(parse(TrainSpec, [path], "sdslora train"))


def test_exact_terms(prepared: plan.Plan) -> None:
    terms = memory.estimate(prepared)
    source = prepared.work.source
    model = trained_adapter.attach(source.load(), prepared.spec.adapter, source)
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    assert terms["base weights"] == sum(p.nbytes for p in model.parameters()) - trained
    assert terms["adapter"] == terms["gradients"] == trained
    assert terms["optimizer state"] == 2 * trained
    # Q_A (n, r) and Q_B (m, r) are as large as A and B; a flag of one number a layer.
    assert terms["bases Q_A, Q_B"] == pytest.approx(trained, rel=0.02)


def test_a_quantized_base_and_checkpoints_need_less(recipe: MakeRecipe, tmp_path) -> None:
    model = tiny.save_model(tmp_path / "model", hidden_size=64, intermediate_size=192)

    def terms(**changes: object) -> dict[str, int]:
        path = recipe(
            model__name_or_path=str(model), training__per_device_train_batch_size=BATCH, **changes
        )
        return memory.estimate(plan.make(parse(TrainSpec, [path], "sdslora train")))

    whole = terms()
    # q, o: 64x64; k, v: 32x64; gate, up, down: 192x64; in two layers, float32
    linears = 4 * 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 192 * 64)
    for option, share in (("load_in_4bit", 1 / 8), ("load_in_8bit", 1 / 4)):
        quantized = terms(model__options={"quantization_config": {option: True}})
        saved = whole["base weights"] - quantized["base weights"]
        assert saved == pytest.approx(linears * (1 - share))
        assert quantized["adapter"] == whole["adapter"]
    # a block's numbers once, and the inputs of both
    checkpointed = terms(training__gradient_checkpointing=True)["activations"]
    one_block = whole["activations"] // 2
    assert checkpointed == one_block + 2 * BATCH * TOKENS * 64 * 4


def test_activations_are_of_the_right_size(prepared: plan.Plan) -> None:
    """Against what autograd keeps for the backward pass of the transformer's layers."""
    assert prepared.work.positions == TOKENS
    source = prepared.work.source
    model = trained_adapter.attach(source.load(), prepared.spec.adapter, source).train()
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model.get_base_model().model(torch.zeros(BATCH, TOKENS, dtype=torch.long))
    ratio = memory.estimate(prepared)["activations"] / sum(kept.values())
    assert output.last_hidden_state.requires_grad
    assert 0.6 < ratio < 1.6, ratio
