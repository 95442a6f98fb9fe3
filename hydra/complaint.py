"""How the front door says no to a person: what, cause, fix, and an exit code.

0 ok, 1 bug, 2 usage, 3 does not fit, 4 environment, 5 cannot reach the cluster, 6 auth, 7 model not found.
"""


class Complaint(Exception):
    """Ends the program with three lines on standard error."""

    def __init__(self, what: str, cause: str, fix: str, exit_code: int) -> None:
        super().__init__(what)
        self.what, self.cause, self.fix, self.exit_code = what, cause, fix, exit_code

    def __str__(self) -> str:
        return f"error: {self.what}\ncause: {self.cause}\nfix:   {self.fix}"
