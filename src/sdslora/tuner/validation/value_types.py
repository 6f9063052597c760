"""The types that the options of a configuration must have."""

from collections.abc import Callable, Iterable, Mapping

from peft import LoraRuntimeConfig

BIASES = ("none", "all", "lora_only", "sdslora_only")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are(one: Callable[[object], bool], value: object) -> bool:
    return isinstance(value, list | tuple | set | frozenset) and all(map(one, value))


def _are_tokens(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(_is_text(name) and _are(_is_index, ids) for name, ids in value.items())
    return _are(_is_index, value)


_RULES: list[tuple[str, Callable[[object], bool], Iterable[str]]] = [
    (
        "a name or a list of names",
        lambda value: _is_text(value) or _are(_is_text, value),
        ("target_modules", "exclude_modules", "layers_pattern"),
    ),
    (
        "a list of names",
        lambda value: _are(_is_text, value),
        ("modules_to_save", "target_parameters"),
    ),
    (
        "a layer's number or a list of them",
        lambda value: _is_index(value) or _are(_is_index, value),
        ("layers_to_transform",),
    ),
    ("a list of tokens' numbers, or one by module", _are_tokens, ("trainable_token_indices",)),
    (
        "text",
        _is_text,
        ("base_model_name_or_path", "revision", "task_type", "peft_version", "megatron_core"),
    ),
    ("values by name", lambda value: isinstance(value, Mapping), ("auto_mapping",)),
]
_NEVER_NONE: list[tuple[str, Callable[[object], bool], Iterable[str]]] = [
    (
        "values by name",
        lambda value: isinstance(value, Mapping) and all(map(_is_text, value)),
        ("rank_pattern", "alpha_pattern"),
    ),
    (
        "true or false",
        lambda value: isinstance(value, bool),
        ("use_rslora", "fan_in_fan_out", "inference_mode"),
    ),
    (
        "a LoraRuntimeConfig",
        lambda value: isinstance(value, LoraRuntimeConfig),
        ("runtime_config",),
    ),
    (f"one of {', '.join(BIASES)}", lambda value: value in BIASES, ("bias",)),
]


def reject_other_kinds(config: object) -> None:
    """Raise ``ValueError`` for an option of another type, naming the right one."""
    for rules, optional in ((_RULES, True), (_NEVER_NONE, False)):
        for kind, fits, options in rules:
            for option in options:
                value = getattr(config, option)
                if not (optional and value is None) and not fits(value):
                    raise ValueError(f"{option} must be {kind}, not {value!r:.80}")
