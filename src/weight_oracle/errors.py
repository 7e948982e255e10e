"""The one kind of error a user is meant to see."""


class UserError(Exception):
    """Something the user can mend: what is wrong, where, and what to do about it.

    The command line prints it as one line and exits with `exit_code`; anything else that is raised is a bug.
    """

    def __init__(self, what: str, *, where: str = "", hint: str = "", exit_code: int = 1):
        self.what, self.where, self.hint, self.exit_code = what, where, hint, exit_code
        super().__init__(what)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        text = f"{text} — {self.hint}" if self.hint else text
        return " ".join(text.split())
