"""Files for Ray's own classes; what scripts do is tested with the command."""

import pytest
import yaml

from lorakit.errors import ConfigError
from lorakit.serving.exporting.launch_files import ray_files
from lorakit.serving.exporting.vllm_adapter import read_for_vllm
from tiny_models import llama
from tiny_models.adapted import save_adapter_of


@pytest.fixture
def exported(tmp_path):
    place = save_adapter_of(tmp_path / "german", llama(), task_type="CAUSAL_LM")
    (place / "chat_template.jinja").write_text("{% for each in messages %}\n{{ each }}{% endfor %}")
    return read_for_vllm(place, "Ray", base_model="owner/base")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's, while it is imported
def test_rays_own_class_takes_the_configuration(exported):
    from ray.llm._internal.serve.core.configs.llm_config import LLMConfig

    written = yaml.safe_load(ray_files(exported, "gs://bucket/adapters")["serve.yaml"])
    (values,) = written["applications"][0]["args"]["llm_configs"]
    config = LLMConfig(**values)
    assert config.model_id == "base" and config.engine_kwargs["chat_template"] == exported.template
    assert config.lora_config.dynamic_lora_loading_path == "gs://bucket/adapters"


@pytest.mark.parametrize("storage", ["/disk", "s3:/b", "https://b/a", "s3://", "s3://b/a b"])
def test_what_ray_cannot_load_from_is_refused(exported, storage):
    with pytest.raises(ConfigError, match="--storage cannot be used"):
        ray_files(exported, storage)
