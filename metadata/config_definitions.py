"""What a named, typed, validated config is. Pure; the wording of errors is Kafka's (``ConfigDef``, KIP-226)."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

INT_MAX = 2**31 - 1
LONG_MAX = 2**63 - 1

_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,20}")
_THROTTLED_REPLICAS = re.compile(r"\*|([0-9]+:[0-9]+)(,[0-9]+:[0-9]+)*")


class ConfigType(enum.IntEnum):
    """Numbered as in DescribeConfigs v3+ (``DescribeConfigsResponse.ConfigType``)."""

    BOOLEAN = 1
    STRING = 2
    INT = 3
    LONG = 5
    DOUBLE = 6
    LIST = 7


class Support(enum.Enum):
    """What becomes of a value that is not the default."""

    HONOURED = "honoured"
    NOT_YET = "accepted, stored; acted on by a later release"
    NO_MEANING = "accepted, no meaning here"
    REFUSED = "refused unless default"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigDefinition:
    """One config. ``default`` is in the form clients see. ``minimum`` and ``maximum`` bound numbers (inclusive),
    ``choices`` strings and the items of lists. ``reason`` says why ``support`` is what it is."""

    name: str
    kind: ConfigType
    default: str
    documentation: str
    support: Support
    reason: str
    minimum: int = -LONG_MAX - 1
    maximum: int = LONG_MAX
    choices: tuple[str, ...] = ()
    broker_name: str | None = None
    """The broker-wide config whose default this one inherits in Kafka; shown as its synonym."""

    def check(self, value: str) -> None:
        """:raises ValueError: ``value`` is not allowed, in Kafka's words."""
        problem = self._problem(value.strip())
        if problem is not None:
            raise ValueError(f"Invalid value {value} for configuration {self.name}: {problem}")

    def _problem(self, value: str) -> str | None:
        match self.kind:
            case ConfigType.INT | ConfigType.LONG:
                problem = self._number_problem(value)
            case ConfigType.DOUBLE:
                problem = self._fraction_problem(value)
            case ConfigType.BOOLEAN:
                problem = None if value.lower() in ("true", "false") else "Expected value to be either true or false"
            case ConfigType.STRING | ConfigType.LIST:
                problem = self._text_problem(value)
        if problem is None and self.support is Support.REFUSED and value.lower() != self.default:
            return f"Tidelog supports only {self.default}: {self.reason}"
        return problem

    def _number_problem(self, value: str) -> str | None:
        limit = INT_MAX if self.kind is ConfigType.INT else LONG_MAX
        if not _WHOLE_NUMBER.fullmatch(value) or not -limit - 1 <= int(value) <= limit:
            return f"Not a number of type {self.kind.name}"
        return self._range_problem(int(value))

    def _fraction_problem(self, value: str) -> str | None:
        try:
            number = float(value)
        except ValueError:
            return "Not a number of type DOUBLE"
        if number != number:
            return "Not a number of type DOUBLE"
        return self._range_problem(number)

    def _range_problem(self, number: float) -> str | None:
        if number < self.minimum:
            return f"Value must be at least {self.minimum}"
        if number > self.maximum:
            return f"Value must be no more than {self.maximum}"
        return None

    def _text_problem(self, value: str) -> str | None:
        if self.choices:
            items = split_list(value) if self.kind is ConfigType.LIST else [value]
            if not items or any(item not in self.choices for item in items):
                return f"String must be one of: {', '.join(self.choices)}"
        elif self.kind is ConfigType.LIST and value and not _THROTTLED_REPLICAS.fullmatch(value.replace(" ", "")):
            return (
                "Must be the literal '*' or a list of replicas in the following format: "
                "[partitionId]:[brokerId],[partitionId]:[brokerId],..."
            )
        return None


def split_list(value: str) -> list[str]:
    """The items of a LIST config; an empty string has none."""
    return [item.strip() for item in value.split(",") if item.strip()]
