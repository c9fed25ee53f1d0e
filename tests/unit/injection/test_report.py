from lorakit import LoraConfig, add_adapter
from tiny_models import TinyNet, distilbert


def test_the_table_of_what_matched():
    injection = add_adapter(
        distilbert(),
        LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=["q_lin", "v_lin"],
            rank_pattern={"1.attention.v_lin": 2},
            task_type="SEQ_CLS",
            bias="lora_only",
        ),
        "topic",
    )
    assert (
        str(injection)
        == injection.table()
        == (
            "Adapter 'topic': 4 modules adapted, 448 LoRA parameters (float32 on float32)\n"
            "  modules  kind    count  in  out  r  scaling  parameters\n"
            "  q_lin    Linear      2  16   16  4        2         256\n"
            "  v_lin    Linear      1  16   16  4        2         128\n"
            "  v_lin    Linear      1  16   16  2        4          64\n"
            "Trained in full and saved: pre_classifier, classifier\n"
            "Trained biases: 4"
        )
    )


def test_rows_group_modules_of_one_kind():
    injection = add_adapter(TinyNet(layers=3), LoraConfig(r=2, lora_alpha=1))
    assert injection.rows() == [
        {
            "modules": "up",
            "kind": "Linear",
            "count": 3,
            "in": 8,
            "out": 16,
            "r": 2,
            "scaling": 0.5,
            "parameters": 144,
        },
        {
            "modules": "down",
            "kind": "Linear",
            "count": 3,
            "in": 16,
            "out": 8,
            "r": 2,
            "scaling": 0.5,
            "parameters": 144,
        },
    ]
    assert injection.lora_parameters == 288
    assert [m.path for m in injection.matches][:2] == ["layers.0.up", "layers.0.down"]


def test_what_was_left_out_is_said():
    injection = add_adapter(TinyNet(), LoraConfig(r=2))
    assert ("classifier", "the output head") in injection.skipped
    assert "Left out, the output head: classifier" in str(injection)


def test_dtypes_are_said():
    import torch

    injection = add_adapter(TinyNet(dtype=torch.bfloat16), LoraConfig(r=2))
    assert (injection.factor_dtype, injection.base_dtype) == ("float32", "bfloat16")
