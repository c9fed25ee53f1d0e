"""Tiny models of every architecture the core is tested on: seeded, a few thousand weights each."""

import torch
from torch import nn

WIDTH = 16
VOCABULARY = 32

# Larger than the usual 0.02, so that a small adapter moves the logits by more than rounding.
_INIT = {"initializer_range": 0.3}


def _seeded(model_class, config, seed=0):
    torch.manual_seed(seed)
    return model_class(config).eval()


def distilbert(model_class="DistilBertForSequenceClassification", **options):
    import transformers

    config = transformers.DistilBertConfig(
        vocab_size=VOCABULARY,
        dim=WIDTH,
        hidden_dim=32,
        n_layers=2,
        n_heads=2,
        max_position_embeddings=16,
        **(_INIT | options),
    )
    return _seeded(getattr(transformers, model_class), config)


def bert(model_class="BertForTokenClassification", **options):
    import transformers

    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        **(_INIT | options),
    )
    return _seeded(getattr(transformers, model_class), config)


def roberta(model_class="RobertaForSequenceClassification", **options):
    import transformers

    config = transformers.RobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=20,
        pad_token_id=1,
        **(_INIT | options),
    )
    return _seeded(getattr(transformers, model_class), config)


def llama(model_class="LlamaForCausalLM", **options):
    import transformers

    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=32,
        max_position_embeddings=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **(sizes | _INIT | options),
    )
    return _seeded(getattr(transformers, model_class), config)


def gpt2(model_class="GPT2LMHeadModel", **options):
    import transformers

    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=16,
        n_embd=WIDTH,
        n_layer=2,
        n_head=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **(_INIT | options),
    )
    return _seeded(getattr(transformers, model_class), config)


def bloom(model_class="BloomForCausalLM", **options):
    import transformers

    config = transformers.BloomConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        n_layer=2,
        n_head=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **(_INIT | options),
    )
    return _seeded(getattr(transformers, model_class), config)


def t5(model_class="T5ForConditionalGeneration", **options):
    import transformers

    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
        **options,
    )
    return _seeded(getattr(transformers, model_class), config)


class TinyNet(nn.Module):
    """A plain torch module with an embedding, two named layers and a head; no transformers."""

    def __init__(self, width=8, layers=2, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(12, width, dtype=dtype)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "up": nn.Linear(width, 2 * width, dtype=dtype),
                    "down": nn.Linear(2 * width, width, bias=False, dtype=dtype),
                }
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width, dtype=dtype)
        self.classifier = nn.Linear(width, 3, dtype=dtype)

    def forward(self, tokens):
        h = self.embed(tokens)
        for layer in self.layers:
            h = h + layer["down"](torch.tanh(layer["up"](h)))
        return self.classifier(self.norm(h))


def tokens(model=None, rows=2, length=6, seed=0):
    """Return the inputs of any model here; sequence-to-sequence models get decoder inputs too."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 12, (rows, length), generator=generator)
    if isinstance(model, TinyNet):
        return {"tokens": ids}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model is not None and model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(3, 12, (rows, 4), generator=generator)
    return inputs


def logits(model, **options):
    """Return a model's output on `tokens(model)` without gradients."""
    with torch.no_grad():
        out = model(**tokens(model, **options))
    return out if isinstance(out, torch.Tensor) else out.logits


def randomize_(model, seed=7, scale=0.3):
    """Give every trainable parameter random values, as training would, and return the model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator) * scale
                parameter.copy_(noise.to(parameter.dtype))
    return model


def train_steps(model, steps=2, learning_rate=0.1):
    """Take optimizer steps on the model's own trainable parameters; return the losses."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate)
    losses = []
    for step in range(steps):
        out = model(**tokens(model, seed=step))
        loss = (out if isinstance(out, torch.Tensor) else out.logits).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def snapshot(model):
    """Return everything about a model that an adapter must give back: see `assert_untouched`."""
    return {
        "parameters": {n: (id(p), p.requires_grad) for n, p in model.named_parameters()},
        "values": {n: t.clone() for n, t in model.state_dict().items()},
        "modules": {
            n: (id(m), type(m), sorted(vars(m)), m.training) for n, m in model.named_modules()
        },
    }


def assert_untouched(model, before):
    """Fail if a model differs from its snapshot in any name, identity, class, flag or bit."""
    after = snapshot(model)
    assert after["modules"] == before["modules"]
    assert after["parameters"] == before["parameters"]
    assert list(after["values"]) == list(before["values"])
    for name, value in before["values"].items():
        assert torch.equal(after["values"][name], value), name


_EXPERTS = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 32,
}


def mixtral(**options):
    import transformers

    sizes = {"num_local_experts": 4}
    config = transformers.MixtralConfig(**(_EXPERTS | sizes | _INIT | options))
    return _seeded(transformers.MixtralForCausalLM, config)


def qwen3_moe(**options):
    import transformers

    sizes = {"num_experts": 4, "moe_intermediate_size": 20, "head_dim": 8}
    config = transformers.Qwen3MoeConfig(**(_EXPERTS | sizes | _INIT | options))
    return _seeded(transformers.Qwen3MoeForCausalLM, config)


def gpt_oss(**options):
    """A model whose experts are stored (experts, in, out), with biases and an interleaved gate."""
    import transformers

    sizes = {"num_local_experts": 3, "head_dim": 8, "sliding_window": 8, "pad_token_id": 0}
    config = transformers.GptOssConfig(**(_EXPERTS | sizes | _INIT | options))
    model = _seeded(transformers.GptOssForCausalLM, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    return model


class Encoder(nn.Module):
    """Two of torch's own encoder layers on embedded tokens."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        sizes = {"dim_feedforward": 24, "dropout": 0.0, "batch_first": True}
        layer = nn.TransformerEncoderLayer(WIDTH, 2, **(sizes | options))
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.score = nn.Linear(WIDTH, 5)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(std=0.3)
        self.eval()

    def forward(self, input_ids, attention_mask=None):
        padding = None if attention_mask is None else attention_mask == 0
        return self.score(self.encoder(self.embed(input_ids), src_key_padding_mask=padding))
