"""What is compared: servers, models and the settings of their requests."""
import hashlib
import itertools
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from evaluation.errors import UsageError

ENDPOINTS = ("completions", "chat")
# Keys of a configuration that are not sent.
ADDRESS_KEYS = ("url", "model", "endpoint")
# Keys that the tool itself sets.
OWN_KEYS = ("prompt", "messages", "seed", "n", "stream", "stop")


@dataclass(frozen=True, eq=False)
class Configuration:
    """One column of a comparison."""

    name: str
    url: str
    model: str | None
    endpoint: str
    request: Mapping[str, object]
    """What every request has beside prompt, seed and stop strings; nested as it is sent."""
    swept: tuple[tuple[str, float], ...] = ()
    """Numbers that `--sweep` gave it, by their keys; plots draw lines through them."""

    @property
    def settings_id(self) -> str:
        """The same for the same model, endpoint and request, wherever the server is and whatever its name here."""
        text = json.dumps([self.model, self.endpoint, self.request], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_configurations(
    named: Sequence[str], sets: Sequence[str], sweeps: Sequence[str], defaults: Mapping[str, object],
) -> list[Configuration]:
    """The configurations of `--config`, each with every `--set`, once for each combination of the `--sweep`s."""
    shared = dict(_assignment(text, "--set") for text in sets)
    axes = [_axis(text) for text in sweeps]
    found = []
    for text in named or ["default:"]:
        name, colon, rest = text.partition(":")
        if not colon or not name.strip():
            raise UsageError(f"--config {text!r}: expected NAME: KEY=VALUE ...")
        own = dict(_assignment(part, "--config") for part in shlex.split(rest))
        for point in itertools.product(*axes):
            label = " ".join([name.strip(), *(f"{key.rpartition('.')[2]}={value}" for key, value in point)])
            numbers = tuple((key, float(value)) for key, value in point if isinstance(value, (int, float)))
            found.append(_configuration(label, {**defaults, **shared, **own, **dict(point)}, numbers))
    for first, second in itertools.combinations(found, 2):
        if first.name == second.name or (first.settings_id, first.url) == (second.settings_id, second.url):
            raise UsageError(f"configurations {first.name!r} and {second.name!r} are one and the same")
        if first.settings_id == second.settings_id:
            raise UsageError(
                f"configurations {first.name!r} and {second.name!r} differ by their server alone; results are kept by model and settings: "
                "name the models (model=...) or run them into different --out folders"
            )
    return found


def _configuration(name: str, values: Mapping[str, object], swept: tuple[tuple[str, float], ...]) -> Configuration:
    endpoint = values.get("endpoint", "completions")
    if endpoint not in ENDPOINTS:
        raise UsageError(f"configuration {name!r}: endpoint is {endpoint!r}, allowed are {', '.join(ENDPOINTS)}")
    if not values.get("url"):
        raise UsageError(f"configuration {name!r} has no url; --url gives one to all")
    request: dict[str, object] = {}
    for key, value in values.items():
        if key in ADDRESS_KEYS:
            continue
        if key.split(".")[0] in OWN_KEYS:
            raise UsageError(f"configuration {name!r}: {key} is set by the tool itself")
        _put(request, key.split("."), value, key)
    model = values.get("model")
    return Configuration(name, str(values["url"]).rstrip("/"), None if model is None else str(model), str(endpoint), request, swept)


def _put(request: dict[str, object], path: Sequence[str], value: object, key: str) -> None:
    """`a.b=1` becomes {"a": {"b": 1}}."""
    for part in path[:-1]:
        inner = request.setdefault(part, {})
        if not isinstance(inner, dict):
            raise UsageError(f"{key}: {part} has a value of its own")
        request = inner
    request[path[-1]] = value


def _assignment(text: str, flag: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not equals or not key or not all(key.split(".")):
        raise UsageError(f"{flag} {text!r}: expected KEY=VALUE, as in cosec.tau=0.3")
    return key, _scalar(value)


def _axis(text: str) -> list[tuple[str, object]]:
    key, equals, values = text.partition("=")
    if not equals or not values:
        raise UsageError(f"--sweep {text!r}: expected KEY=VALUE,VALUE,...")
    return [(key, _scalar(value)) for value in values.split(",")]


def _scalar(text: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
