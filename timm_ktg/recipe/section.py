"""The base of all sections of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

Location = tuple[int | str, ...]
Share = Annotated[float, Field(ge=0, le=1)]
RGB = tuple[float, float, float]


class Section(BaseModel):
    """A part of a recipe; frozen, and unknown keys are errors.

    The strings below the fields are the help of the command line.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=()
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
        if problems:
            raise ValidationError.from_exception_data(cls.__name__, problems)
        assert section is not None
        return section


def problem(location: Location, message: str) -> InitErrorDetails:
    """Return an error at a location below the section, for `Section.problems`."""
    kind = PydanticCustomError("problem", "{message}", {"message": message})
    return InitErrorDetails(type=kind, loc=location, input=None)


def _relay(error: ValidationError) -> list[InitErrorDetails]:
    """Return the errors that pydantic found, so that they can be raised with others."""
    return [
        InitErrorDetails(
            type=PydanticCustomError(
                details["type"],
                "{message}",
                {"message": details["msg"]},
            ),
            loc=details["loc"],
            input=details["input"],
        )
        for details in error.errors(include_url=False)
    ]


def checked(check: Callable[[Any], str | None]) -> AfterValidator:
    """Return a validator that raises the problem that `check` returns, if any."""

    def validate(value: Any) -> Any:
        said = check(value)
        if said:
            raise PydanticCustomError("problem", "{message}", {"message": said})
        return value

    return AfterValidator(validate)
