"""`training.torch_compile` in a recipe: one graph without breaks, the chunked loss behind it."""

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from lorakit.errors import ConfigError
from lorakit.training import train
from tolerances import largest_error

COMPILED = {"torch_compile": True, "torch_compile_backend": "aot_eager"}


# torch 2.13's own tracer makes an instance of the autograd function it traces.
@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")
def test_a_compiled_run_is_one_graph_and_gives_the_same_adapter(recipe):
    lora = {"r": 2, "target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]}
    made = []
    for output, more in (("plain", {}), ("compiled", COMPILED)):
        torch.compiler.reset()
        counters.clear()
        # One shape, so that it compiles once.
        training = {"max_steps": 2, "eval_strategy": "no", "pad_to_multiple_of": 16, **more}
        made.append(train(recipe(output, lora=lora, training=training)))
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    assert made[1].train_loss == pytest.approx(made[0].train_loss, rel=1e-5)
    plain, compiled = (load_file(run.adapter_path / "adapter_model.safetensors") for run in made)
    for name, tensor in plain.items():
        assert largest_error(compiled[name], tensor) < 1e-3, name
    torch.compiler.reset()


def test_without_a_compiler_it_is_an_error_before_anything_is_loaded(recipe, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError) as caught:
        train(recipe(training={"torch_compile": True}))
    assert str(caught.value) == (
        "training.torch_compile needs a C++ compiler on a CPU: got 'no-such-compiler', expected an "
        "installed program. Install g++ or name another in the environment variable CXX, or "
        "leave torch_compile out."
    )
    recipe(training=COMPILED)  # this backend writes no C++
