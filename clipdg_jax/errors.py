"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A mistake in the user's input or surroundings, told in one line.

    The message names the file or field, says what is wrong, and what would be right.
    `clipdg_jax.main` and the tools print it without a traceback and exit with status 2.
    """
