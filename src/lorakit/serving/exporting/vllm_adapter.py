"""An adapter that vLLM can serve, or the reasons why it cannot."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorakit.adapters import Adapter, portable_adapter
from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.config import TaskType
from lorakit.data.conversations import with_default_system
from lorakit.data.text_formats import alpaca_prompt
from lorakit.errors import AdapterFileError, ConfigError, first_few
from lorakit.files.json_files import read_json_object
from lorakit.inference.loaded import companions_of
from lorakit.injection.selection.variants import variants_of
from lorakit.libraries.hub import is_hub_id
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.run_directory import find_adapter
from lorakit.serving.clients.talking import Form, form_of

MAX_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values of vLLM's --max-lora-rank."""

TEMPLATE_FILE = "chat_template.jinja"
_HALF = ("bfloat16", "float16")
_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*")
_QUESTION = "What can you do?"


@dataclass(frozen=True)
class VllmAdapter:
    """An adapter in the form that vLLM reads, and what vLLM must be told.

    Attributes:
        name: Name by which requests ask for it.
        adapter: The adapter, with its scalings folded in.
        companions: Directory of its tokenizer and settings.
        base: Hub id or absolute directory of the base.
        revision: Branch, tag or commit of the base.
        trust_remote_code: Whether code that comes with the base runs.
        settings: The settings of its training.
        template: Its chat template, if it has one.
    """

    name: str
    adapter: Adapter
    companions: Path
    base: str
    revision: str | None
    trust_remote_code: bool
    settings: InferenceSettings
    template: str | None

    @property
    def max_rank(self) -> int:
        """The least value of --max-lora-rank that the adapter fits."""
        return next(each for each in MAX_RANKS if each >= self.adapter.config.r)

    @property
    def engine_options(self) -> dict[str, Any]:
        """Options of vLLM's engine, by name as its Python classes have them."""
        settings, quantization = self.settings, self.settings.quantization
        dtype = settings.dtype if quantization is None else quantization.compute_dtype
        options: dict[str, Any] = {"enable_lora": True, "max_lora_rank": self.max_rank}
        options |= {"dtype": dtype} if dtype in _HALF else {}
        if quantization is not None and quantization.bits == 4:
            options["quantization"] = "bitsandbytes"
        options |= {} if self.revision is None else {"revision": self.revision}
        return options | ({"trust_remote_code": True} if self.trust_remote_code else {})

    @property
    def notes(self) -> list[str]:
        """What may differ from answers here."""
        notes = []
        quantization = self.settings.quantization
        if quantization is not None and quantization.bits == 4:
            notes.append(
                f"The base was in 4 bits ({quantization.quant_type}) in training. vLLM quantizes "
                "it to nf4 when it loads it (--quantization bitsandbytes), which needs the package "
                "bitsandbytes there; without that option it serves the base as it is saved."
            )
        elif quantization is not None:
            notes.append(
                "The base was in 8 bits in training. vLLM cannot quantize it so and serves it as "
                "it is saved, which changes answers slightly."
            )
        if self.settings.dtype == "float32":
            notes.append(
                "The training was in float32. vLLM computes adapters in 16 bits, which changes "
                "answers slightly."
            )
        if self.settings.system_prompt is not None and self.form == "conversation":
            notes.append(
                "vLLM does not add the system prompt of training (data.system_prompt). Send it as "
                "the first message, as the request here does."
            )
        if not is_hub_id(self.base, is_base=True):
            notes.append(
                f"The base is the directory {self.base}. Change it in the file if vLLM runs on "
                "another machine."
            )
        notes.append(
            "vLLM has adapters for most architectures, not for all: its page of supported models "
            "has a column for LoRA."
        )
        return notes

    @property
    def form(self) -> Form:
        """What the adapter takes."""
        return form_of(self.settings.format, has_template=self.template is not None)

    def request(self, model: str) -> tuple[str, dict[str, Any]]:
        """Return the path and the body of a request to try the adapter.

        Args:
            model: Name of the model in the request.
        """
        body: dict[str, Any] = {"model": model, "max_tokens": 64, "temperature": 0}
        if self.settings.stop_token_ids:
            body["stop_token_ids"] = list(self.settings.stop_token_ids)
        if self.form == "conversation":
            return "/v1/chat/completions", {
                **body,
                "messages": with_default_system(
                    [{"role": "user", "content": _QUESTION}], self.settings.system_prompt
                ),
            }
        prompt = alpaca_prompt(_QUESTION) if self.form == "instruction" else _QUESTION
        return "/v1/completions", {**body, "prompt": prompt}


def read_for_vllm(
    place: str | Path, target: str, *, name: str | None = None, base_model: str | None = None
) -> VllmAdapter:
    """Read a run's adapter for vLLM.

    Args:
        place: A run, or an adapter or checkpoint directory.
        target: What it is for, in messages.
        name: Name of the adapter; None takes that of the directory.
        base_model: Hub id or directory of the base; None takes the one that the adapter names.

    Raises:
        MissingFileError: There is no adapter.
        AdapterFileError: vLLM cannot serve it; names all reasons.
        ConfigError: Its base is unknown, or the name cannot be used.
    """
    directory, recipe = find_adapter(place)
    adapter = Adapter.load(directory)
    companions = companions_of(directory)
    settings = InferenceSettings.load(companions)
    if problems := _problems(adapter, settings):
        raise AdapterFileError(
            f"{target} cannot serve {place}: got {'; '.join(problems)}, expected low-rank updates "
            f"of the linear layers of a CAUSAL_LM. Serve it with `lorakit serve {place}`, or merge "
            f"it into its base with `lorakit merge {place} OUTPUT` and serve that."
        )
    base = base_model or adapter.base_model
    if base is None:
        raise ConfigError(
            f"No base model in {directory / 'adapter_config.json'}: got null in "
            "base_model_name_or_path, expected a hub id or a directory. Give --base-model."
        )
    of_recipe: Recipe | None = recipe if base_model is None else None
    base = base if is_hub_id(base, is_base=True) else str(Path(base).absolute())
    return VllmAdapter(
        name=_check_name(name or _name_of(directory)),
        adapter=replace(portable_adapter(adapter), base_model=base),
        companions=companions,
        base=base,
        revision=None if of_recipe is None else of_recipe.revision,
        trust_remote_code=of_recipe is not None and of_recipe.trust_remote_code,
        settings=settings,
        template=_template(companions),
    )


def _problems(adapter: Adapter, settings: InferenceSettings) -> list[str]:
    """Return everything about an adapter that vLLM does not have."""
    task = adapter.config.task_type or settings.task_type
    biases = [key for key in adapter.replaced if key.endswith(".bias")]
    heads = [key for key in adapter.replaced if key not in biases]
    stacked = adapter.stacked
    largest = max((A.shape[-2] for A, _ in adapter.factors.values()), default=0)
    found: Mapping[str, bool] = {
        f"the task {task}": task not in (None, TaskType.CAUSAL_LM),
        f"layers trained in full ({first_few(sorted(heads))})": bool(heads),
        f"trained biases ({first_few(sorted(biases))})": bool(biases),
        **{
            f"{variant.method} ({variant.setting}), which is more than a low-rank update": True
            for variant in variants_of(adapter.config)
            if variant.setting and not variant.is_all_in_factors
        },
        f"trained tokens ({first_few(sorted(adapter.trained_tokens))})": bool(
            adapter.trained_tokens
        ),
        f"adapted embeddings ({first_few(sorted(adapter.embeddings))})": bool(adapter.embeddings),
        f"adapted convolutions ({first_few(sorted(adapter.convolutions))})": bool(
            adapter.convolutions
        ),
        f"adapted stacks of experts ({first_few(sorted(stacked))})": bool(stacked),
        "layers of GPT-2's kind (fan_in_fan_out)": adapter.config.fan_in_fan_out,
        f"rank {largest}, more than {MAX_RANKS[-1]}": largest > MAX_RANKS[-1],
        "no adapted module": not adapter.factors,
    }
    return [problem for problem, is_there in found.items() if is_there]


def _name_of(directory: Path) -> str:
    path = directory.absolute()
    return path.parent.name if path.name == "adapter" else path.name


def _check_name(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise ConfigError(
            f"The adapter cannot be served as {name!r}: expected letters, digits, '.', '_' and "
            "'-'. Choose a name with --name."
        )
    return name


def _template(companions: Path) -> str | None:
    """Return the chat template beside an adapter: a file, or a value of the tokenizer's."""
    file = companions / TEMPLATE_FILE
    if file.is_file():
        return file.read_text(encoding="utf-8")
    try:
        found = read_json_object(companions / "tokenizer_config.json").get("chat_template")
    except ValueError:
        return None  # no tokenizer beside the adapter: it is the base's
    return found if isinstance(found, str) else None
