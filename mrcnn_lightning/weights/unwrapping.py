"""The weights in what a training program wrote."""

from typing import Any

# Where training programs keep weights, the averaged ones first: torchvision's and timm's scripts,
# Lightning, Detectron2, Detectron of before.
_PLACES = ("state_dict_ema", "model_ema", "state_dict", "model", "blobs")
# What DDP, torch.compile and Lightning's modules put before each name.
_PREFIXES = ("module.", "_orig_mod.", "model.")


def unwrapped(content: dict[str, Any]) -> dict[str, Any]:
    """The weights in what a training program wrote, under the network's own names."""
    state = next((content[key] for key in _PLACES if _is_named(content.get(key))), content)
    state = {key: value for key, value in state.items() if key != "n_averaged"}
    while state:
        prefix = next(
            (each for each in _PREFIXES if all(key.startswith(each) for key in state)), ""
        )
        if not prefix:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _is_named(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(key, str) for key in entry)
