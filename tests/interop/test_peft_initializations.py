"""Initializations for which PEFT changes the base: here it stays, and the function is PEFT's."""

import json

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.lora import preprocess_loraga
from peft.tuners.lora.eva import initialize_lora_eva_weights

from lorakit import (
    Adapter,
    LoraConfig,
    add_adapter,
    initialize_from_data,
    load_adapter,
    merge_adapters,
    save_adapter,
)
from lorakit.adapters import combine, resize_adapter
from lorakit.adapters.peft_files.files import CONFIG_FILE
from lorakit.errors import AdapterFileError, AdapterMismatchError
from lorakit.injection import adapter_config
from tiny_models import gpt2, llama, logits, mixtral
from tiny_models.quantized import quantized
from tolerances import largest_error

pytestmark = [
    pytest.mark.filterwarnings("ignore:(PiSSA|OLoRA) changes the base weights:UserWarning"),
    pytest.mark.filterwarnings("ignore:lora with eva initialization used with:UserWarning"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),
]
TARGETS = {llama: ["q_proj", "v_proj", "down_proj"], gpt2: ["c_attn", "c_proj"]}
# PEFT's OLoRA decomposes a Conv1D's weight without transposing it.
REWRITING = [(llama, "pissa"), (llama, "olora"), (gpt2, "pissa")]
EXACT = 1e-5
"""Logits of a program that adds up in another order, as issue 7 asks for."""


def batches(count=3, rows=4, length=8):
    """Different tokens each, the last two of some rows padded."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for _ in range(count):
        ids = torch.randint(3, 32, (rows, length), generator=generator)
        mask = torch.ones_like(ids)
        mask[1:, -2:] = 0
        made.append({"input_ids": ids, "attention_mask": mask, "labels": ids.clone()})
    return made


def settings(build, init, **options):
    return {
        "r": 3,
        "lora_alpha": 2,
        "target_modules": TARGETS[build],
        "init_lora_weights": init,
    } | (options)


def trained(model, steps=3, rate=0.1):
    """Train what requires gradients by plain gradient descent."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate)
    for batch in batches(steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model


def loraga_model(build, **options):
    """PEFT's model, with the gradient over `batches()`."""
    model = build()
    config = peft.LoraConfig(
        lora_ga_config=peft.LoraGAConfig(), **settings(build, "lora_ga", **options)
    )

    def step():
        for batch in batches():
            model(**batch).loss.backward()

    preprocess_loraga(model, config, step)
    return get_peft_model(model, config)


@pytest.mark.parametrize("build,init", REWRITING, ids=lambda v: getattr(v, "__name__", v))
@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["", "rslora", "dora"]
)
def test_training_from_there_is_peft_s(build, init, options):
    theirs = get_peft_model(build(), peft.LoraConfig(**settings(build, init, **options)))
    ours = build()
    base = {key: tensor.clone() for key, tensor in ours.state_dict().items()}
    before = logits(ours)
    add_adapter(ours, LoraConfig(**settings(build, init, **options)))
    assert largest_error(logits(ours), before) < EXACT
    assert largest_error(logits(ours), logits(theirs)) < EXACT
    trained(ours), trained(theirs)
    moved = largest_error(logits(ours), before)
    assert moved > 0.01
    assert largest_error(logits(ours), logits(theirs)) < EXACT
    state = ours.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in base.items())


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_both_initialize_to_the_same_product(init):
    theirs = get_peft_model(llama(), peft.LoraConfig(**settings(llama, init)))
    ours = llama()
    add_adapter(ours, LoraConfig(**settings(llama, init)))
    peer = theirs.base_model.model.model.layers[0].mlp.down_proj
    update = ours.model.layers[0].mlp.down_proj.updates["default"]
    expected = peer.lora_B["default"].weight @ peer.lora_A["default"].weight
    assert largest_error(update.lora_B @ update.lora_A, expected) < EXACT
    assert largest_error(update.initial_B @ update.initial_A, expected) < EXACT


def test_a_fast_svd_finds_nearly_what_the_exact_one_does():
    products = []
    for init in ("pissa", "pissa_niter_16"):
        model = llama()
        add_adapter(model, LoraConfig(**settings(llama, init)))
        update = model.model.layers[0].self_attn.q_proj.updates["default"]
        products.append(update.lora_B @ update.lora_A)
        assert torch.equal(logits(model), logits(llama()))
    assert largest_error(products[1], products[0]) < 0.02


@pytest.mark.parametrize("build", [llama, gpt2])
@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "lora_ga"])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_file_of_ours_opens_in_peft_on_the_unchanged_base(build, init, use_rslora, tmp_path):
    ours = build()
    add_adapter(ours, LoraConfig(**settings(build, init, use_rslora=use_rslora)))
    if init == "lora_ga":
        initialize_from_data(ours, batches())
    trained(ours).eval()
    save_adapter(ours, tmp_path)
    theirs = PeftModel.from_pretrained(build(), tmp_path).eval()
    assert theirs.peft_config["default"].r == 6
    assert largest_error(logits(theirs), logits(ours)) < EXACT
    again = build()
    load_adapter(again, tmp_path)
    assert largest_error(logits(again), logits(ours)) < EXACT
    assert largest_error(logits(ours), logits(build())) > 0.01
    merge_adapters(again)
    assert largest_error(logits(again), logits(ours)) < EXACT


@pytest.mark.parametrize("build,init", REWRITING, ids=lambda v: getattr(v, "__name__", v))
@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["", "rslora", "dora"]
)
def test_a_file_that_peft_has_not_converted_opens_here(build, init, options, tmp_path):
    theirs = get_peft_model(build(), peft.LoraConfig(**settings(build, init, **options)))
    trained(theirs).eval().save_pretrained(tmp_path / "theirs")
    ours = build()
    load_adapter(ours, tmp_path / "theirs", trainable=True)
    assert adapter_config(ours).init_lora_weights == init
    assert largest_error(logits(ours), logits(theirs)) < EXACT
    assert largest_error(logits(ours), logits(build())) > 0.01
    trained(ours), trained(theirs)
    assert largest_error(logits(ours), logits(theirs)) < EXACT
    save_adapter(ours, tmp_path / "ours")
    adapter = Adapter.load(tmp_path / "ours")
    assert adapter.config.init_lora_weights is True
    again = PeftModel.from_pretrained(build(), tmp_path / "ours").eval()
    assert largest_error(logits(again), logits(ours)) < EXACT


@pytest.fixture
def unconverted(tmp_path):
    theirs = get_peft_model(llama(), peft.LoraConfig(**settings(llama, "pissa")))
    theirs.save_pretrained(tmp_path / "unconverted")
    return tmp_path / "unconverted"


def test_such_a_file_is_no_value_to_calculate_with(unconverted, tmp_path):
    adapter = Adapter.load(unconverted)
    path = next(iter(adapter.factors))
    for act in (
        lambda: combine({"a": adapter, "b": adapter}, {"a": 1.0, "b": 1.0}),
        lambda: resize_adapter(adapter, 2),
    ):
        with pytest.raises(AdapterFileError, match=r"'pissa'.*save it from there"):
            act()
    with pytest.raises(AdapterMismatchError, match=r"depends on the base.*'pissa'"):
        adapter.delta_weight(path)
    adapter.save(tmp_path / "again")  # as it came
    assert json.loads((tmp_path / "again" / CONFIG_FILE).read_text())["init_lora_weights"] == (
        "pissa"
    )
    theirs = PeftModel.from_pretrained(llama(), tmp_path / "again").eval()
    assert largest_error(logits(theirs), logits(llama())) < EXACT


def test_it_does_not_open_on_a_quantized_base_either(unconverted):
    model = quantized(llama())
    before = logits(model)
    with pytest.raises(AdapterMismatchError, match=r"PEFT quantizes what it leaves.*16-bit base"):
        load_adapter(model, unconverted)
    assert torch.equal(logits(model), before)


def test_a_random_initialization_is_refused_by_name(tmp_path):
    theirs = get_peft_model(llama(), peft.LoraConfig(**settings(llama, "pissa_niter_4")))
    theirs.save_pretrained(tmp_path)
    with pytest.raises(AdapterFileError, match=r"'pissa_niter_4'.*path_initial_model_for_weight"):
        load_adapter(llama(), tmp_path)
    value = Adapter(LoraConfig(init_lora_weights="pissa_niter_4", r=1), {})
    value = Adapter(value.config, {"model.layers.0.self_attn.q_proj": factors(1, 16, 16)})
    with pytest.raises(AdapterMismatchError, match="changed by random factors"):
        add_adapter(llama(), value)


def factors(r, inside, outside):
    return torch.ones(r, inside), torch.ones(outside, r)


def test_peft_s_lora_ga_needs_the_gradient_and_is_refused(tmp_path):
    loraga_model(llama).save_pretrained(tmp_path)
    with pytest.raises(AdapterFileError, match="init_lora_weights='lora_ga', which changes"):
        load_adapter(llama(), tmp_path)


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}], ids=["", "rslora"])
def test_lora_ga_begins_where_peft_s_does(options):
    theirs = loraga_model(llama, **options)
    ours = llama()
    base = {key: tensor.clone() for key, tensor in ours.state_dict().items()}
    add_adapter(ours, LoraConfig(**settings(llama, "lora_ga", **options)))
    initialize_from_data(ours, batches())
    assert largest_error(logits(ours), logits(llama())) < EXACT
    for path in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"):
        update = ours.get_submodule(f"model.layers.1.{path}").updates["default"]
        peer = theirs.get_submodule(f"base_model.model.model.layers.1.{path}")
        for letter, vectors in (("A", 0), ("B", 1)):
            mine = getattr(update, f"lora_{letter}").detach()
            other = getattr(peer, f"lora_{letter}")["default"].weight.detach()
            # The two differ in the signs of singular vectors.
            signs = (mine * other).sum(1 - vectors, keepdim=True).sign()
            assert largest_error(mine * signs, other) < 1e-3, (path, letter)
    state = ours.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in base.items())


def test_training_from_a_lora_ga_initialization_is_peft_s():
    """From PEFT's own factors, so that signs are the same."""
    theirs = loraga_model(llama)
    ours = llama()
    add_adapter(ours, LoraConfig(**settings(llama, "lora_ga")))
    for path, layer in theirs.named_modules():
        if hasattr(layer, "lora_A") and hasattr(layer, "base_layer"):
            update = ours.get_submodule(path.removeprefix("base_model.model.")).updates["default"]
            update.initialize_at_(layer.lora_A["default"].weight, layer.lora_B["default"].weight)
    trained(ours, rate=0.05), trained(theirs, rate=0.05)
    assert largest_error(logits(ours), logits(theirs)) < EXACT
    assert largest_error(logits(ours), logits(llama())) > 0.01


@pytest.mark.parametrize("rho", [1.0, 2.0])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_eva_finds_peft_s_ranks_and_directions(rho, use_rslora, tmp_path):
    data = batches(1, rows=16)
    options = {
        "r": 2,
        "use_rslora": use_rslora,
        "target_modules": ["q_proj", "o_proj", "down_proj"],
    }
    config = settings(llama, "eva", **options)
    eva = peft.EvaConfig(rho=rho, tau=0.99999)
    theirs = get_peft_model(llama(), peft.LoraConfig(**config, eva_config=eva))
    initialize_lora_eva_weights(theirs, data, show_progress_bar=False)
    ours = llama()
    add_adapter(ours, LoraConfig(**config, eva_rho=rho))
    done = initialize_from_data(ours, data)
    assert sum(done.ranks.values()) == 2 * 6 and not done.unreached
    assert (set(done.ranks.values()) == {2}) == (rho == 1)
    for path, r in done.ranks.items():
        peer = theirs.get_submodule(f"base_model.model.{path}")
        assert peer.r["default"] == r, path
        update = ours.get_submodule(path).updates["default"]
        assert update.scaling == pytest.approx(peer.scaling["default"])
        A, expected = update.lora_A.detach(), peer.lora_A["default"].weight.detach()
        assert update.lora_B.eq(0).all()
        # PEFT sums up approximately; two random planes of 16 dimensions have an overlap of 0.125.
        overlap = (A @ expected.T).square().sum() / r
        assert overlap > 0.995, path
    trained(ours).eval()
    save_adapter(ours, tmp_path)
    there = PeftModel.from_pretrained(llama(), tmp_path).eval()
    assert largest_error(logits(there), logits(ours)) < EXACT


def test_a_file_of_peft_s_eva_opens_here(tmp_path):
    config = settings(llama, "eva")
    theirs = get_peft_model(llama(), peft.LoraConfig(**config, eva_config=peft.EvaConfig()))
    initialize_lora_eva_weights(theirs, batches(1, rows=16), show_progress_bar=False)
    trained(theirs).eval().save_pretrained(tmp_path)
    ours = llama()
    load_adapter(ours, tmp_path)
    assert largest_error(logits(ours), logits(theirs)) < EXACT


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_on_the_weight_of_a_router_is_refused(start, tmp_path):
    options = {"target_modules": [], "target_parameters": ["gate.weight"], "r": 2}
    config = peft.LoraConfig(**options, init_lora_weights=start)
    get_peft_model(mixtral(), config).save_pretrained(tmp_path)
    with pytest.raises(AdapterMismatchError, match=r"on the weight of model.layers.0.mlp.gate"):
        load_adapter(mixtral(), tmp_path)
