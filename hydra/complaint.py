"""How the front door says no to a person: what, cause, fix, and an exit code.

0 ok, 1 bug, 2 usage, 3 does not fit, 4 environment, 5 cannot reach the cluster, 6 auth, 7 model not found.
"""

REFUSAL_EXIT = {
    "does_not_fit": 3,
    "no_workers": 3,
    "source_unreachable": 4,
    "access_denied": 6,
    "internal_error": 1,
}
MODEL_SETTINGS = frozenset({"max_model_len", "quantize"})  # settings that only some models can keep


def exit_code_of(code: str, param: str | None = None) -> int:
    """The exit code for a model that was refused with this code, because of this setting if `param` is one.

    What is not listed is the model's own fault: 7.
    """
    return 2 if param in MODEL_SETTINGS else REFUSAL_EXIT.get(code, 7)


class Complaint(Exception):
    """Ends the program with three lines on standard error."""

    def __init__(self, what: str, cause: str, fix: str, exit_code: int) -> None:
        super().__init__(what)
        self.what, self.cause, self.fix, self.exit_code = what, cause, fix, exit_code

    def __str__(self) -> str:
        return f"error: {self.what}\ncause: {self.cause}\nfix:   {self.fix}"
