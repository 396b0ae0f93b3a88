"""The base of all sections of a recipe."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from ..errors import found

Location = tuple[int | str, ...]
_LARGEST = 3.4e38  # of float32
_TRUTH = TypeAdapter(bool)
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of a recipe; frozen, and unknown keys are errors.

    The strings below the fields are the help of the command line.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        hide_input_in_errors=True,  # it may hold a password; check_section shows it where it may
    )

    @classmethod
    def problems(cls, data: Mapping[str, Any]) -> Iterable[InitErrorDetails]:
        """Yield the problems between fields of unchecked data."""
        return ()

    @model_validator(mode="wrap")
    @classmethod
    def _all_at_once(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Report problems between fields together with problems inside them."""
        section, problems = None, []
        try:
            section = handler(data)
        except ValidationError as error:
            problems = _relay(error)
        if isinstance(data, Mapping):
            problems += cls.problems(data)
        if section is not None:
            problems += (each for name, value in section for each in _extremes(value, (name,)))
        if problems:
            raise ValidationError.from_exception_data(cls.__name__, problems)
        assert section is not None
        return section


def problem(location: Location, message: str) -> InitErrorDetails:
    """Return an error at a location below the section, for `Section.problems`."""
    kind = PydanticCustomError("problem", "{message}", {"message": message})
    return InitErrorDetails(type=kind, loc=location, input=None)


def changed(section: type[BaseModel], data: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Return the fields that are given in unchecked data with another value than the default.

    Args:
        section: The section.
        data: Its data, unchecked.
        names: The fields to look at.
    """
    defaults = {name: section.model_fields[name].default for name in names}
    return [name for name, value in defaults.items() if not _is(data.get(name, value), value)]


def without_effect(
    section: type[BaseModel], data: Mapping[str, Any], names: Iterable[str], unless: str
) -> Iterator[InitErrorDetails]:
    """Yield an error for each field that is given in unchecked data and does nothing.

    Args:
        section: The section.
        data: Its data, unchecked.
        names: The fields to look at.
        unless: When they have an effect, such as `train.sched is step`.
    """
    for name in changed(section, data, names):
        default = json.dumps(section.model_fields[name].default)
        said = f"has no effect unless {unless}. Leave it out, or give its default, {default}."
        yield problem((name,), said)


def is_on(given: Any) -> bool | None:
    """Return the truth value that pydantic makes of an unchecked value; None if it is none."""
    try:
        return _TRUTH.validate_python(given)
    except ValidationError:
        return None


def _is(given: Any, value: Any) -> bool:
    """Return whether an unchecked value is `value`; a command line gives texts."""
    if isinstance(value, bool):
        return is_on(given) is value
    given, value = (tuple(each) if isinstance(each, list) else each for each in (given, value))
    try:
        return float(given) == float(value)
    except (TypeError, ValueError, OverflowError):
        return bool(given == value)


def _extremes(value: Any, location: Location) -> Iterator[InitErrorDetails]:
    """Yield the numbers in a value that no training can compute with.

    Args:
        value: A field's, checked; other sections have looked at their own.
        location: Where it is.
    """
    if isinstance(value, int) and abs(value) >= 2**63:
        yield problem(location, f"should be below 2**63. Found {found(value)}.")
    elif isinstance(value, float) and not abs(value) < _LARGEST:
        said = f"should be finite, and below {_LARGEST:.1e}. Found {value}."
        yield problem(location, said)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _extremes(each, (*location, str(key)))
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from _extremes(each, (*location, number))


def _relay(error: ValidationError) -> list[InitErrorDetails]:
    """Return the errors that pydantic found, so that they can be raised with others."""
    return [
        InitErrorDetails(
            type=PydanticCustomError(
                details["type"],
                "{message}",
                {"message": _said(details)},
            ),
            loc=details["loc"],
            input=details["input"],
        )
        for details in error.errors(include_url=False)
    ]


# What pydantic says, in the words of all other messages; by the kind of its error.
_WORDS = {
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_parsing", "float_type"), "a number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "true or false"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    **dict.fromkeys(
        ("dict_type", "mapping_type", "model_type", "model_attributes_type"), "a mapping"
    ),
    "string_type": "a text",
    "finite_number": "a finite number",
    "greater_than": "above {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "less_than_equal": "at most {le:g}",
    "literal_error": "{expected}",
    "too_long": "a list of at most {max_length}",
}


def _said(details: ErrorDetails) -> str:
    """Return an error of pydantic's in plain words; one that was relayed before stays as it is."""
    words, context = _WORDS.get(details["type"]), details.get("ctx", {})
    if words is None or "message" in context:
        return details["msg"].removeprefix("Input ")
    return f"should be {words.format(**context)}".replace("'", "`")


def from_one(value: Any) -> Any:
    """Return a number or a word as a list of one."""
    return [value] if isinstance(value, int | str) else value


def checked(check: Callable[[Any], str | None]) -> AfterValidator:
    """Return a validator that raises the problem that `check` returns, if any."""

    def validate(value: Any) -> Any:
        try:
            said = check(value)
        except OSError as error:  # a path that no system takes
            said = f"cannot be used: {error.strerror}."
        if said:
            raise PydanticCustomError("problem", "{message}", {"message": said})
        return value

    return AfterValidator(validate)
