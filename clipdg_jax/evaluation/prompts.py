"""Prompt templates: what turns a class name into captions."""

from collections.abc import Sequence
from typing import Any

from clipdg_jax.data import imagenet
from clipdg_jax.errors import UserError

# For suites that bring no templates of their own. They name no medium except "photo" and
# "picture", and half name none, so that neither domain is favoured by much.
SIMPLE = (
    "a photo of a {}.",
    "a picture of a {}.",
    "an image of a {}.",
    "a {}.",
    "the {}.",
    "{}",
)


def check(templates: Sequence[str], where: str) -> tuple[str, ...]:
    """The templates as a tuple; `where` names the file or field in errors.

    Raises UserError unless `templates` is a non-empty list of strings that each hold `{}` once.
    """
    if isinstance(templates, str) or not isinstance(templates, Sequence) or not templates:
        raise UserError(f'{where}: must be a list of templates such as ["a photo of a {{}}."]')
    for template in templates:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise UserError(
                f"{where}: {template!r} is not a template; each holds {{}} once, for the class name"
            )
    return tuple(templates)


def chosen(templates: Any, where: str) -> tuple[str, ...] | None:
    """The templates that a suite names: a list, "openai" for OpenAI's 80, or None for none.

    Raises UserError as `check`.
    """
    if templates is None:
        return None
    return imagenet.templates() if templates == "openai" else check(templates, where)


def fill(templates: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Every template for every class: `len(classes) * len(templates)` prompts, class-major."""
    return [template.replace("{}", name) for name in classes for template in templates]
