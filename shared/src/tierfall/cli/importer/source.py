"""A LiteLLM proxy config as its file has it: sections, and the entries of its model list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
import yaml

from tierfall.config.load import read_text
from tierfall.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tierfall.cli.importer.findings import Findings

MAX_INCLUDES: Final = 32
_ENTRY_KEYS: Final = frozenset({"model_name", "litellm_params", "model_info"})
_OLD_PARAMS: Final = frozenset({"rpm", "tpm"})
"""Stood beside ``litellm_params`` in early configs."""


class Entry(msgspec.Struct, frozen=True):
    """One deployment of ``model_list``."""

    name: str
    """``model_name``: what clients ask for; several entries may share it, and ``*`` in it is a wildcard."""
    params: dict[str, Any]
    """``litellm_params``, with a named credential's values filled in."""
    info: dict[str, Any]
    """``model_info``."""

    @property
    def is_wildcard(self) -> bool:
        """Whether it stands for any number of models."""
        return "*" in self.name


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    entries: tuple[Entry, ...]
    litellm: dict[str, Any]
    router: dict[str, Any]
    general: dict[str, Any]
    rest: dict[str, Any]
    """Every other section."""


def read(path: Path, findings: Findings) -> Source:
    """Reads the file and those that it includes.

    Raises:
        ConfigError: It cannot be read, or is no YAML mapping.
    """
    sections = _sections(path, findings)
    credentials = _credentials(sections.pop("credential_list", None), findings)
    listed = sections.pop("model_list", None)
    entries = [_entry(item, place, credentials, findings) for place, item in enumerate(listed or ())]
    return Source(
        entries=tuple(entry for entry in entries if entry is not None),
        litellm=_mapping(sections.pop("litellm_settings", None), "litellm_settings", findings),
        router=_mapping(sections.pop("router_settings", None), "router_settings", findings),
        general=_mapping(sections.pop("general_settings", None), "general_settings", findings),
        rest=sections,
    )


def _sections(path: Path, findings: Findings) -> dict[str, Any]:
    """The file's mapping, what it includes merged as LiteLLM does: lists grow, other values replace."""
    merged = _load(path, findings)
    included = merged.pop("include", None) or ()
    for name in list(included)[:MAX_INCLUDES]:
        for key, value in _load(path.parent / str(name), findings).items():
            if isinstance(value, list) and isinstance(merged.get(key), list):
                merged[key] = [*merged[key], *value]
            else:
                merged[key] = value
    if not isinstance(merged.get("model_list") or [], list):
        raise ConfigError(f"{path}: model_list must be a list")
    return merged


def _load(path: Path, findings: Findings) -> dict[str, Any]:
    text = read_text(path)
    loader = _Loader(text)
    try:
        loaded = loader.get_single_data()
    except (yaml.YAMLError, ValueError) as error:
        # The message may quote the line, and with it a key; the place is enough.
        mark = getattr(error, "problem_mark", None)
        at = f":{mark.line + 1}" if mark is not None else ""
        said = getattr(error, "problem", None) or type(error).__name__
        raise ConfigError(f"{path}{at}: not YAML: {said}") from None
    finally:
        loader.dispose()
    for key in loader.twice:
        findings.lost(f"the first {key}", "stands twice, and LiteLLM too reads only the last", path.name)
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: a LiteLLM config is a mapping with model_list and more")
    return {str(key): value for key, value in loaded.items()}


class _Loader(yaml.SafeLoader):
    """PyYAML's, which keeps the last of two equal keys without a word; this one notes them."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.twice: list[str] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001,FBT002 - PyYAML's signature
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                self.twice.append(key.value)
            elif isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _entry(
    item: object, place: int, credentials: Mapping[str, dict[str, Any]], findings: Findings
) -> Entry | None:
    where = f"model_list[{place}]"
    if not isinstance(item, dict) or not isinstance(item.get("model_name"), str):
        findings.lost(where, "has no model_name, so nobody can ask for it")
        return None
    name = item["model_name"].strip()
    if not name.isprintable():
        findings.lost(where, "has a model_name that is not printable text")
        return None
    params = dict(_mapping(item.get("litellm_params"), f"{where}.litellm_params", findings))
    params.update({key: value for key, value in item.items() if key in _OLD_PARAMS})
    for key in item.keys() - _ENTRY_KEYS - _OLD_PARAMS:
        findings.lost(str(key), "is no key of a model_list entry", name)
    credential = params.pop("litellm_credential_name", None)
    if credential is not None:
        if str(credential) not in credentials:
            findings.lost(f"credential {credential}", "is not in credential_list: set the tier's key", name)
        params = {**credentials.get(str(credential), {}), **params}
    if not name or not isinstance(params.get("model"), str) or not params["model"].strip():
        findings.lost(f"model {name or where}", "has no litellm_params.model", where)
        return None
    info = _mapping(item.get("model_info"), f"{where}.model_info", findings)
    return Entry(name, {str(key): value for key, value in params.items()}, info)


def _credentials(listed: object, findings: Findings) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for item in listed if isinstance(listed, list) else ():
        if isinstance(item, dict) and "credential_name" in item:
            values = _mapping(item.get("credential_values"), "credential_values", findings)
            found[str(item["credential_name"])] = values
    return found


def _mapping(value: object, path: str, findings: Findings) -> dict[str, Any]:
    if isinstance(value, dict):
        return {str(key): member for key, member in value.items()}
    if value is not None:
        findings.lost(path, "is no mapping")
    return {}
