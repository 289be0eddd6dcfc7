"""The one exception that means: the user can fix this."""


class UserError(Exception):
    """A mistake in the input (config, path, image, checkpoint, caption) that the user can mend.

    The message is one sentence that says what was wrong, where, and what to do. `regvq_jax.main` prints it
    without a traceback and exits with code 2; any other exception is a bug of ours and keeps its traceback.
    """
