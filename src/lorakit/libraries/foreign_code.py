"""Loading models without running their custom code, unless the user has allowed it.

Without `trust_remote_code`, transformers asks "Do you wish to run the custom code? [y/N]" on the
terminal. lorakit loads everything through these functions, which always pass it.
"""

from __future__ import annotations

from typing import Any

from lorakit.libraries.hub import is_hub_id, offline_if_unreachable


def load_pretrained(auto_class: Any, name: Any, *, trust_remote_code: bool, **options: Any) -> Any:
    """Call `auto_class.from_pretrained`.

    Args:
        auto_class: A configuration, tokenizer or model class of transformers.
        name: Hub id or local directory.
        trust_remote_code: Whether custom code of the model may run.
        options: Passed to `from_pretrained`.

    Raises:
        ValueError: The model needs custom code, which may not run.
    """
    options["trust_remote_code"] = trust_remote_code
    if not is_hub_id(name, is_base=True):
        return auto_class.from_pretrained(name, **options)
    with offline_if_unreachable():
        return auto_class.from_pretrained(name, **options)


def build_from_config(
    auto_class: Any, config: Any, *, trust_remote_code: bool, device: Any = None, **options: Any
) -> Any:
    """Build a model without weights from its configuration.

    Args:
        auto_class: An auto class of transformers, or a model class.
        config: The configuration.
        trust_remote_code: Whether custom code of the model may run.
        device: Device of the uninitialized parameters; None for the meta device.
        options: Passed to the class, such as `dtype`.

    Raises:
        ValueError: The model needs custom code, which may not run.
    """
    import torch

    with torch.device(device or "meta"):
        if hasattr(auto_class, "from_config"):
            return auto_class.from_config(config, trust_remote_code=trust_remote_code, **options)
        return auto_class._from_config(config, **options)  # a loaded class needs no custom code
