"""The chunked loss equals the model's own, for every way a model comes from hidden states to it."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import tiny_models
from allocations import allocations_of
from fixtures.labelled_batches import batch
from lorakit.config import LoraConfig
from lorakit.errors import TrainingError
from lorakit.injection import add_adapter, disable_adapters
from lorakit.training.losses.find_output_loss import find_output_loss
from lorakit.training.losses.output_loss import OutputLoss
from lorakit.training.losses.token_loss import TokenLoss
from tiny_models import VOCABULARY, WIDTH, bloom, gpt2, llama, randomize_, t5
from tolerances import GRADIENT_TOLERANCE, TOLERANCE, largest_error

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.5,
}
BART_SIZES = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "init_std": 0.5,
    "dropout": 0.0,
}


class Operations(TorchDispatchMode):
    """Notes the operations that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def made(config, model_class, **options):
    import transformers

    torch.manual_seed(0)
    return getattr(transformers, model_class)(getattr(transformers, config)(**options)).eval()


def capped():
    options = {**SIZES, "head_dim": 8, "final_logit_softcapping": 3.0}
    return made("Gemma2Config", "Gemma2ForCausalLM", **options)


def scaled():
    return made("CohereConfig", "CohereForCausalLM", **SIZES, logit_scale=0.25)


def divided():
    return made("GraniteConfig", "GraniteForCausalLM", **SIZES, logits_scaling=8.0)


def experts():
    options = {**SIZES, "num_local_experts": 2, "output_router_logits": True}
    options["router_aux_loss_coef"] = 0.5
    return made("MixtralConfig", "MixtralForCausalLM", **options)


def offset():
    model = made("BartConfig", "BartForConditionalGeneration", **BART_SIZES)
    model.final_logits_bias.normal_()
    return model


def untied_t5():
    return t5(tie_word_embeddings=False)


MODELS = [llama, gpt2, bloom, capped, scaled, divided, experts, t5, untied_t5, offset]


def auxiliary_weight(model):
    wants = getattr(model.config, "output_router_logits", False)
    return model.config.router_aux_loss_coef if wants else 0.0


def follow(model):
    inputs, labels = batch(model, rows=1)
    loss, reason = find_output_loss(model, inputs, labels, auxiliary_weight=auxiliary_weight(model))
    assert loss is not None, reason
    loss.chunk_tokens = 5
    return loss


def ours(loss, model, token_loss=TokenLoss()):  # noqa: B008 (frozen)
    inputs, labels = batch(model)
    outputs, hidden = loss.run(model, inputs)
    rows, targets = loss.select_counted(hidden, labels)
    mean = loss.sum(rows, targets, token_loss) / len(targets)
    return mean + auxiliary_weight(model) * getattr(outputs, "aux_loss", 0.0)


def of_the_model(model):
    inputs, labels = batch(model)
    return model(**inputs, labels=labels).loss


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(model, got, expected):
    assert largest_error(got, expected) <= TOLERANCE[torch.float32]
    found, wanted = gradients(model, got), gradients(model, expected)
    assert found.keys() == wanted.keys() and found
    for name, gradient in wanted.items():
        assert largest_error(found[name], gradient) <= 4 * GRADIENT_TOLERANCE[torch.float32], name


HEADS = {
    "frozen": {"target_modules": "all-linear"},
    "adapted": {"target_modules": ["lm_head"]},
    "trained in full": {"target_modules": "all-linear", "modules_to_save": ["lm_head"]},
}
TOKENS = {"target_modules": "all-linear", "trainable_token_indices": {"lm_head": [5, 9]}}


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("head", [*HEADS.values(), TOKENS], ids=[*HEADS, "tokens"])
def test_loss_and_gradients_equal_the_models_own(build, head):
    model = build()
    add_adapter(model, LoraConfig(r=2, task_type="CAUSAL_LM", **head))
    randomize_(model)
    loss = follow(model)
    assert_same(model, ours(loss, model), of_the_model(model))
    trained = [n for n, p in model.named_parameters() if p.grad is not None]
    assert any("lm_head" in name for name in trained) == (head is not HEADS["frozen"])


@pytest.mark.parametrize(
    ("build", "form"),
    [
        (llama, (1.0, None)),
        (capped, (1.0, 3.0)),
        (scaled, (0.25, None)),
        (divided, (0.125, None)),
    ],
)
def test_what_is_done_to_the_logits_is_found(build, form):
    found = follow(build()).form
    assert (found.scale, found.cap) == form


def test_with_dropout_in_the_output_layer_the_loss_is_that_of_one_mask():
    model = llama()
    add_adapter(model, LoraConfig(r=2, target_modules=["lm_head"], lora_dropout=0.5))
    loss = follow(randomize_(model))
    loss.chunk_tokens = 1000
    model.train()
    torch.manual_seed(3)
    first = gradients(model, ours(loss, model))
    torch.manual_seed(3)
    again = gradients(model, ours(loss, model))
    other = gradients(model, ours(loss, model))
    for name, gradient in first.items():
        assert torch.equal(gradient, again[name])
        assert not torch.equal(gradient, other[name])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("build", [llama, capped])
def test_label_smoothing_is_that_of_transformers(build, smoothing):
    from transformers.trainer_pt_utils import LabelSmoother

    model = build()
    add_adapter(model, LoraConfig(r=2))
    loss = follow(randomize_(model))
    inputs, labels = batch(model)
    smoother = LabelSmoother(epsilon=smoothing)
    expected = smoother(model(**inputs), labels, shift_labels=True)
    assert_same(model, ours(loss, model, TokenLoss(label_smoothing=smoothing)), expected)


def test_dynamic_fine_tuning_weighs_each_token_by_its_probability():
    model = llama()
    add_adapter(model, LoraConfig(r=2))
    loss = follow(randomize_(model))
    inputs, labels = batch(model)
    logits = model(**inputs).logits[:, :-1].flatten(0, 1)
    targets = labels[:, 1:].flatten()
    each = F.cross_entropy(logits, targets, reduction="none")[targets != -100]
    expected = (each * torch.exp(-each).detach()).mean()
    assert_same(model, ours(loss, model, TokenLoss(weighs_by_probability=True)), expected)


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("build", [llama, capped])
def test_under_autocast_it_runs_in_autocasts_dtype(build, head):
    model = build()
    add_adapter(model, LoraConfig(r=2, task_type="CAUSAL_LM", **head))
    loss = follow(randomize_(model))
    inputs, labels = batch(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(**inputs, labels=labels).loss
        _, hidden = loss.run(model, inputs)
    rows, targets = loss.select_counted(hidden, labels)  # the trainer's place: outside autocast
    got = loss.sum(rows, targets, TokenLoss()) / len(targets)
    assert largest_error(got, expected) <= TOLERANCE[torch.bfloat16]
    found, wanted = gradients(model, got), gradients(model, expected)
    for name, gradient in wanted.items():
        assert largest_error(found[name], gradient) <= 2 * GRADIENT_TOLERANCE[torch.bfloat16], name


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_a_half_precision_base(head):
    model = llama().to(torch.bfloat16)
    add_adapter(model, LoraConfig(r=2, task_type="CAUSAL_LM", **head))
    loss = follow(randomize_(model))
    got, expected = ours(loss, model), of_the_model(model)
    assert largest_error(got, expected) <= TOLERANCE[torch.bfloat16]
    found, wanted = gradients(model, got), gradients(model, expected)
    for name, gradient in wanted.items():
        assert largest_error(found[name], gradient) <= 2 * GRADIENT_TOLERANCE[torch.bfloat16], name


def test_the_base_alone_while_adapters_are_off():
    model = llama()
    base = of_the_model(model).detach()
    add_adapter(model, LoraConfig(r=2, modules_to_save=["lm_head"]))
    loss = follow(randomize_(model))
    with torch.no_grad(), disable_adapters(model):
        assert largest_error(ours(loss, model), base) <= TOLERANCE[torch.float32]
    assert largest_error(ours(loss, model), base) > 0.01


def test_losses_and_hits():
    model = llama()
    loss = follow(model)
    inputs, labels = batch(model)
    logits = model(**inputs).logits[:, :-1].detach()
    targets = labels[:, 1:]
    hits = ((logits.argmax(-1) == targets) & (targets != -100)).sum()
    targets[1, 2] = logits[1, 2].argmax()  # one hit at least
    hits = ((logits.argmax(-1) == targets) & (targets != -100)).sum()
    _, hidden = loss.run(model, inputs)
    rows, counted = loss.select_counted(hidden, labels)
    loss.chunk_tokens = 3
    losses, got = loss.losses_and_hits(rows, counted)
    assert got == hits > 0 and not losses.requires_grad
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    assert largest_error(losses, expected[targets.flatten() != -100]) <= TOLERANCE[torch.float32]
    assert loss.losses_and_hits(rows[:0], counted[:0])[0].shape == (0,)


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("build", ["llama", "gpt2", "t5"])
def test_no_step_holds_all_logits(build, head):
    vocabulary, rows, length, chunk = 3000, 48, 16, 32
    model = getattr(tiny_models, build)(vocab_size=vocabulary)
    add_adapter(model, LoraConfig(r=2, task_type="CAUSAL_LM", **head))
    loss = follow(randomize_(model))
    loss.chunk_tokens = chunk
    inputs, labels = batch(model, rows, length)
    counted = int((labels[:, loss.shifts :] != -100).sum())
    all_logits = counted * vocabulary * 4

    def step():
        _, hidden = loss.run(model, inputs)
        loss.sum(*loss.select_counted(hidden, labels), TokenLoss()).backward()

    step()
    model.zero_grad()
    # A head trained in full has gradients of the same size, once as such and once being summed.
    trained = 3 * vocabulary * WIDTH * 4 if "modules_to_save" in head else 0
    assert allocations_of(step).peak < all_logits / 2 + trained
    plain = allocations_of(lambda: model(**inputs, labels=labels).loss.backward())
    assert plain.peak > all_logits, "the measure must see what it is to forbid"


def test_the_output_layer_reads_no_token_while_the_model_runs():
    model = llama()
    inputs, labels = batch(model)
    outputs, hidden = follow(model).run(model, inputs)
    assert outputs.logits.shape == (len(labels), 0, model.config.vocab_size)
    assert hidden.shape == (*labels.shape, WIDTH)


def test_an_output_layer_that_runs_twice_is_refused():
    model = llama()
    loss = OutputLoss(model.lm_head, shifts=True)
    inputs, _ = batch(model)
    with pytest.raises(TrainingError, match="its output layer ran 2 times, expected once"):
        loss.run(lambda **given: (model(**given), model(**given)), inputs)
    with pytest.raises(TrainingError, match="ran 0 times"):
        loss.run(lambda **given: None, inputs)
    assert not model.lm_head._forward_pre_hooks


def test_a_hook_on_the_output_layer_is_honoured():
    model = llama()
    loss = follow(model)
    before = ours(loss, model).detach()
    model.lm_head.register_forward_hook(lambda module, args, output: output * 2)
    assert largest_error(ours(loss, model), of_the_model(model)) <= TOLERANCE[torch.float32]
    assert largest_error(ours(loss, model), before) > 0.01


@pytest.mark.parametrize("build", [llama, capped], ids=["plain", "capped"])
def test_losses_that_are_computed_elsewhere_are_those_of_here(build):
    from lorakit.ops.linear_loss import known_values

    model = build().requires_grad_(False)
    add_adapter(model, LoraConfig(r=2, target_modules=["q_proj"]))
    loss, (inputs, labels) = follow(model), batch(model)
    asked = []

    def elsewhere(output, token_loss, hidden, targets):
        asked.append(len(targets))
        return known_values(
            hidden, *output.losses_and_gradients(hidden.detach(), targets, token_loss)
        )

    found = []
    for losses_elsewhere in (None, elsewhere):
        loss.losses_elsewhere = losses_elsewhere
        hidden = loss.run(model, inputs)[1].detach().requires_grad_()
        x2d, targets = loss.select_counted(hidden, labels)
        total = loss.sum(x2d, targets, TokenLoss(label_smoothing=0.1))
        found.append((total, *torch.autograd.grad(total, x2d)))
    assert len(asked) == 1
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-5)


def test_a_trained_output_layer_is_not_computed_elsewhere():
    model = llama()
    add_adapter(model, LoraConfig(r=2, target_modules=["lm_head"]))
    assert follow(model).frozen_weight is None


def test_on_a_gpu_the_weight_is_not_copied_to_learn_that_this_way_is_for_cpus():
    head = torch.nn.Linear(8, 30, device="meta").requires_grad_(False)
    loss = OutputLoss(head, shifts=True)
    loss._autocast_dtype = torch.bfloat16
    hidden = torch.randn(3, 8, device="meta")
    with Operations() as operations:
        assert loss._frozen_for_us(hidden) is None
    assert operations.names == []


@pytest.mark.parametrize("adapts", [False, True], ids=["frozen", "adapted"])
def test_in_16_bits_products_with_few_numbers_of_rows_are_made(adapts):
    """Each number of rows is another product, which oneDNN keeps."""
    model = llama().bfloat16().requires_grad_(False)
    if adapts:
        add_adapter(model, LoraConfig(r=2, target_modules=["lm_head"]))
    loss, rows = follow(model), set()
    loss.chunk_tokens = 256

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
                rows.add(len(args[-2]))
            return found

    with Products():
        for tokens in (*range(1, 40), 100):
            h = torch.randn(tokens, model.config.hidden_size).bfloat16().requires_grad_()
            targets = torch.zeros(tokens, dtype=torch.int64)
            loss.sum(h, targets, TokenLoss()).backward()
            assert h.grad.shape == h.shape
            assert len(loss.losses_and_hits(h, targets)[0]) == tokens
    assert {32, 64, 128} <= rows and not rows & {*range(3, 32), *range(33, 40), 100}
