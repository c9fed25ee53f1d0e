"""Tokens whose rows are trained: where they act, what they cost, and what does not go with them."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lorakit import (
    Adapter,
    LoraConfig,
    adapter_rows,
    add_adapter,
    count_parameters,
    delete_adapter,
    disable_adapters,
    hotswap_adapter,
    load_adapter,
    save_adapter,
    set_adapter,
    unload,
)
from lorakit.adapters import load_adapter_state_dict, portable_adapter, resize_adapter
from lorakit.adapters.on_model.save_and_load import adapter_state_dict
from lorakit.errors import (
    AdapterFileError,
    AdapterMismatchError,
    AdapterStateError,
    ConfigError,
    TargetError,
)
from tiny_models import (
    TinyNet,
    assert_untouched,
    gpt2,
    llama,
    logits,
    randomize_,
    snapshot,
    t5,
    tokens,
    train_steps,
)
from tiny_models.trained_tokens import BUILDS, ROWS, TARGETS, masked_bert, with_tokens
from tolerances import LOGITS_TOLERANCE, largest_error


def written_into(build, rows_by_path, model=None):
    """Return a base in whose weights rows are written, ties kept."""
    model = build() if model is None else model
    for path, (indices, rows) in rows_by_path.items():
        with torch.no_grad():
            model.get_submodule(path).weight[list(indices)] = rows.to(
                model.get_submodule(path).weight.dtype
            )
    return model


class TestWhereTheyAct:
    @pytest.mark.parametrize("build", BUILDS)
    def test_fresh_rows_change_no_bit(self, build):
        model = build()
        before = logits(model)
        add_adapter(
            model, LoraConfig(target_modules=[TARGETS[build]], trainable_token_indices=ROWS)
        )
        assert torch.equal(logits(model), before)

    @pytest.mark.parametrize("build", BUILDS)
    def test_they_act_as_if_they_stood_in_the_weight(self, build):
        """In tied modules too: T5 has four, and BERT's output layer a bias besides."""
        model = with_tokens(build)
        adapter = Adapter.from_model(model)
        ((path, rows),) = adapter.trained_tokens.items()
        expected = written_into(build, {path: (ROWS, rows)})
        add_adapter(expected, Adapter(_without_tokens(adapter), adapter.factors, adapter.replaced))
        assert largest_error(logits(model), logits(expected)) < LOGITS_TOLERANCE
        assert largest_error(logits(model), logits(build())) > 0.01

    def test_by_name_each_weight_has_its_own(self):
        model = with_tokens(llama, {"embed_tokens": [9, 5], "lm_head": [3, 30]})
        adapter = Adapter.from_model(model)
        assert {p: len(r) for p, r in adapter.trained_tokens.items()} == {
            "model.embed_tokens": 2,
            "lm_head": 2,
        }
        trained = adapter.trained_tokens
        expected = written_into(
            llama,
            {
                "model.embed_tokens": ((9, 5), trained["model.embed_tokens"]),
                "lm_head": ((3, 30), trained["lm_head"]),
            },
        )
        add_adapter(expected, Adapter(_without_tokens(adapter), adapter.factors))
        assert largest_error(logits(model), logits(expected)) < LOGITS_TOLERANCE

    def test_a_module_that_is_no_transformers_model(self):
        model = TinyNet()
        add_adapter(
            model, LoraConfig(target_modules=["up"], trainable_token_indices={"embed": [4, 7]})
        )
        before = logits(model)
        randomize_(model)
        assert largest_error(logits(model), before) > 0.01

    def test_tied_modules_share_the_very_rows_and_count_once(self):
        model = t5()
        base = count_parameters(model).total
        add_adapter(model, LoraConfig(r=2, target_modules=["q"], trainable_token_indices=ROWS))
        copies = [
            m.trained_copies["default"] for m in model.modules() if hasattr(m, "trained_copies")
        ]
        assert len(copies) == 4 and len({id(c.rows) for c in copies}) == 1
        count = count_parameters(model)
        assert count.replaced == 3 * 16 and count.total == base + count.lora + 48

    def test_embeddings_that_scale_what_they_find(self):
        class Scaled(nn.Embedding):
            def forward(self, input):
                return super().forward(input) * 3

        model = TinyNet()
        model.embed.__class__ = Scaled
        torch.manual_seed(0)
        config = LoraConfig(target_modules=["up"], trainable_token_indices={"embed": [4, 7]})
        add_adapter(model, config)
        randomize_(model)
        rows = Adapter.from_model(model).trained_tokens["embed"]
        with torch.no_grad():
            got = model.embed(torch.tensor([[7, 1], [4, 4]]))
            assert torch.equal(got[0, 0], rows[1] * 3) and torch.equal(got[1, 0], rows[0] * 3)
            assert torch.equal(got[0, 1], model.embed.weight[1] * 3)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_bases_train_float32_rows(self, dtype):
        model = llama(tie_word_embeddings=True).to(dtype)
        before = logits(model)
        add_adapter(model, LoraConfig(target_modules=["q_proj"], trainable_token_indices=ROWS))
        assert model.lm_head.trained_copies["default"].rows.dtype == torch.float32
        assert torch.equal(logits(model), before)
        assert logits(randomize_(model)).dtype == dtype

    def test_a_padding_token_among_them_gets_no_gradient(self):
        model = llama()  # its padding token is 0
        add_adapter(model, LoraConfig(target_modules=["q_proj"], trainable_token_indices=[4, 0]))
        model(input_ids=torch.tensor([[0, 4, 5, 0]])).logits.square().mean().backward()
        gradient = model.model.embed_tokens.trained_copies["default"].rows.grad
        assert gradient[0].any() and not gradient[1].any()


def _without_tokens(adapter):
    return adapter.config.model_copy(update={"trainable_token_indices": None})


# torch 2.13's own tracer makes an instance of the autograd function it traces.
@pytest.mark.slow(reason="compiles a model")
@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(("build", "layers"), [(gpt2, "transformer.h"), (llama, "model.layers")])
def test_they_compile_without_a_break(build, layers):
    model = with_tokens(build)
    parent, _, name = layers.rpartition(".")
    setattr(model.get_submodule(parent), name, model.get_submodule(layers)[:1])
    inputs = tokens(model) | {"use_cache": False}
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    gradients = []
    for run in (model, compiled):
        out = run(**inputs).logits
        model.zero_grad()
        out.square().mean().backward()
        rows = model.get_input_embeddings().trained_copies["default"].rows
        gradients.append((out.detach(), rows.grad.clone()))
    for got, expected in zip(*gradients, strict=True):
        assert largest_error(got, expected) < LOGITS_TOLERANCE


class TestLifeOfAnAdapter:
    @pytest.mark.parametrize("build", BUILDS)
    def test_unloading_leaves_no_trace(self, build):
        model = build()
        before = snapshot(model)
        add_adapter(
            model, LoraConfig(target_modules=[TARGETS[build]], trainable_token_indices=ROWS)
        )
        train_steps(model)
        unload(model)
        assert_untouched(model, before)

    def test_only_the_rows_of_an_active_adapter_act_and_learn(self):
        model = with_tokens(gpt2, [5], name="a")
        add_adapter(
            model, LoraConfig(target_modules=["c_attn"], trainable_token_indices=[5, 9]), "b"
        )
        randomize_(model, seed=8)
        rows = {n: model.lm_head.trained_copies[n].rows for n in "ab"}
        outputs = {}
        for name in "ab":
            set_adapter(model, name)
            outputs[name] = logits(model)
            assert [n for n in "ab" if rows[n].requires_grad] == [name]
        assert largest_error(outputs["a"], outputs["b"]) > 0.01
        with disable_adapters(model):
            assert torch.equal(logits(model), logits(gpt2()))
        with pytest.raises(AdapterStateError, match="cannot act together"):
            set_adapter(model, ["a", "b"])
        set_adapter(model, "a")
        delete_adapter(model, "b")
        assert torch.equal(logits(model), outputs["a"])

    @pytest.mark.parametrize("build", [gpt2, llama, t5])
    def test_one_adapter_for_each_row(self, build):
        model = with_tokens(build, [5, 9], name="a")
        add_adapter(
            model,
            LoraConfig(target_modules=[TARGETS[build]], trainable_token_indices=[3, 4, 9]),
            "b",
        )
        randomize_(model, seed=8)
        names = ["b", None, "a"]
        inputs = tokens(model, rows=3)
        with torch.no_grad(), adapter_rows(model, names):
            mixed = model(**inputs).logits
        for row, name in enumerate(names):
            set_adapter(model, name)
            with torch.no_grad():
                alone = model(**{k: v[row : row + 1] for k, v in inputs.items()}).logits
            assert largest_error(mixed[row : row + 1], alone) < LOGITS_TOLERANCE

    @pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_copies_of_a_model_share_rows_among_themselves_alone(self, copier):
        model = with_tokens(gpt2)
        twin = copier(model)
        assert torch.equal(logits(twin), logits(model))
        ends = [twin.transformer.wte, twin.lm_head]
        rows = [end.trained_copies["default"].rows for end in ends]
        assert rows[0] is rows[1] and rows[0] is not model.lm_head.trained_copies["default"].rows

    @pytest.mark.parametrize("build", BUILDS)
    def test_files_and_state_dicts(self, build, tmp_path):
        model = with_tokens(build)
        save_adapter(model, tmp_path)
        again = build()
        load_adapter(again, tmp_path)
        assert torch.equal(logits(again), logits(model))
        other = with_tokens(build, seed=9)
        load_adapter_state_dict(other, adapter_state_dict(model))
        assert torch.equal(logits(other), logits(model))

    def test_hotswap(self):
        model, other = with_tokens(gpt2), with_tokens(gpt2, seed=9)
        hotswap_adapter(model, Adapter.from_model(other))
        assert torch.equal(logits(model), logits(other))
        for wrong in ((5, 9, 3), (9, 5)):
            with pytest.raises(AdapterMismatchError, match=r"other tokens of transformer\.wte"):
                hotswap_adapter(model, Adapter.from_model(with_tokens(gpt2, wrong)))
        plain = gpt2()
        add_adapter(plain, LoraConfig(target_modules=["c_attn"]))
        with pytest.raises(AdapterMismatchError, match="lacks the tokens"):
            hotswap_adapter(model, Adapter.from_model(plain))
        with pytest.raises(AdapterMismatchError, match=r"trains tokens of transformer\.wte"):
            hotswap_adapter(plain, Adapter.from_model(model))

    def test_a_portable_form_refuses_them_by_name(self):
        adapter = Adapter.from_model(with_tokens(gpt2))
        with pytest.raises(AdapterFileError, match="Cannot export.*trainable_token_indices"):
            portable_adapter(adapter)

    def test_resizing_the_updates_keeps_them(self):
        adapter = Adapter.from_model(with_tokens(gpt2))
        resized = resize_adapter(adapter, 1).adapter
        assert resized.trained_tokens.keys() == adapter.trained_tokens.keys() != set()
        for path, tokens in adapter.trained_tokens.items():
            assert torch.equal(resized.trained_tokens[path], tokens)


def refused(model, error=TargetError, **options):
    before = snapshot(model)
    with pytest.raises(error) as caught:
        add_adapter(model, LoraConfig(**options))
    assert_untouched(model, before)
    return str(caught.value)


class TestBadInput:
    @pytest.mark.parametrize(
        ("indices", "message"),
        [
            ([3, -1, -2], r"negative indices: \[-2, -1\]"),
            ([3, 4, 3, 4], r"repeated indices: \[3, 4\]"),
            ({"wte": [1, 1], "lm_head": [-5]}, "repeated indices of wte.*of lm_head: "),
            ([], "at least one index"),
            ({"wte": []}, "no index of wte"),
            ([True], "expected a number"),
            ("wte", "trainable_token_indices"),
        ],
    )
    def test_of_the_configuration(self, indices, message):
        with pytest.raises(ConfigError, match=message):
            LoraConfig(trainable_token_indices=indices)

    def test_rows_that_are_not_there(self):
        text = refused(gpt2(), target_modules=["c_attn"], trainable_token_indices=[3, 32, 40])
        assert "transformer.wte name 32, 40, but it has 32 rows" in text
        assert "model.resize_token_embeddings(41)" in text

    def test_names_that_are_not_there(self):
        text = refused(
            gpt2(), target_modules=["c_attn"], trainable_token_indices={"embed_tokens": [1]}
        )
        assert "trainable_token_indices=['embed_tokens']" in text and "wte" in text

    def test_a_model_that_names_no_embedding(self):
        text = refused(TinyNet(), target_modules=["up"], trainable_token_indices=[1])
        assert "does not say which that is" in text

    def test_what_has_no_rows(self):
        text = refused(TinyNet(), target_modules=["up"], trainable_token_indices={"norm": [1]})
        assert "Cannot train rows of norm: it is a LayerNorm" in text

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"target_modules": ["c_attn", "wte"]}, "and an update"),
            ({"modules_to_save": ["wte"]}, "wte is trained in full (modules_to_save)"),
            ({"modules_to_save": ["lm_head"]}, "lm_head is trained in full (modules_to_save)"),
            ({"target_modules": ["lm_head"], "use_dora": True}, "a magnitude (use_dora)"),
        ],
    )
    def test_what_changes_the_same_weight_otherwise(self, options, message):
        config = {"target_modules": ["c_attn"], "trainable_token_indices": [3], **options}
        assert message in refused(gpt2(), **config)

    def test_a_trained_bias_beside_the_rows(self):
        text = refused(
            masked_bert(), target_modules=["query"], trainable_token_indices=[3], bias="all"
        )
        assert "cls.predictions.decoder" in text and "bias that is" in text

    def test_embeddings_that_do_more_than_look_up(self):
        model = TinyNet()
        model.embed.max_norm = 1.0
        text = refused(model, target_modules=["up"], trainable_token_indices={"embed": [1]})
        assert "max_norm" in text

    def test_files_whose_parts_contradict_each_other(self, tmp_path):
        adapter = Adapter.from_model(with_tokens(gpt2))
        rows = adapter.trained_tokens["transformer.wte"]
        wrong = {
            "no indices": (_without_tokens(adapter), adapter.trained_tokens),
            "no rows": (adapter.config, {}),
            "2 rows for 3 indices": (adapter.config, {"transformer.wte": rows[:2]}),
            "no matrix": (adapter.config, {"transformer.wte": rows[0]}),
        }
        for message, (config, rows) in wrong.items():
            made = Adapter(config, adapter.factors, trained_tokens=rows)
            made.save(tmp_path / message)
            with pytest.raises(AdapterFileError, match=message):
                Adapter.load(tmp_path / message)

    def test_values_that_do_not_fit_the_base(self):
        adapter = Adapter.from_model(with_tokens(gpt2))
        rows = adapter.trained_tokens["transformer.wte"]
        for message, wrong in {
            "no rows for 'transformer.wte'": {},
            r"shape \(3, 8\), expected \(3, 16\)": {"transformer.wte": rows[:, :8]},
            "rows for 'transformer.wpe'": {"transformer.wte": rows, "transformer.wpe": rows},
            "rows for 'lm_head'": {"transformer.wte": rows, "lm_head": rows + 1},
        }.items():
            model = gpt2()
            before = snapshot(model)
            with pytest.raises(AdapterMismatchError, match=message):
                add_adapter(model, Adapter(adapter.config, adapter.factors, trained_tokens=wrong))
            assert_untouched(model, before)

    def test_weights_that_are_offloaded(self):
        from accelerate import cpu_offload

        model = cpu_offload(gpt2(), execution_device="cpu")
        with pytest.raises(TargetError, match=r"rows of transformer\.wte: accelerate offloads"):
            add_adapter(model, LoraConfig(target_modules=["c_attn"], trainable_token_indices=[3]))
