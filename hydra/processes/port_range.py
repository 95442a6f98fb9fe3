"""`--ports FIRST` or `FIRST-LAST`: the ports of one cluster or one worker in a row. Opens none of them."""

import attrs

from hydra.complaint import Complaint


@attrs.frozen
class PortRange:
    """`last` None: as many as are needed. `first` 0: any that are free."""

    first: int
    last: int | None = None

    @classmethod
    def parse(cls, text: str) -> "PortRange":
        """Raises Complaint (exit 2)."""
        first, dash, last = text.partition("-")
        numbers = [first, last] if dash else [first]
        if not all(number.isascii() and number.isdigit() and int(number) <= 65535 for number in numbers):
            raise _wrong(text, "it is FIRST or FIRST-LAST, of ports up to 65535")
        if dash and not 0 < int(first) <= int(last):
            raise _wrong(text, "the last is not after the first")
        return cls(int(first), int(last) if dash else None)

    def take(self, n_ports: int, what_for: str) -> tuple[int, ...]:
        """The first `n_ports`. Raises Complaint (exit 2) when there are fewer."""
        if self.first == 0:
            return (0,) * n_ports
        end = self.first + n_ports
        if end - 1 > (self.last or 65535):
            have = (self.last or 65535) - self.first + 1
            cause = f"{what_for} needs {n_ports}, and it has {have}"
            fix = f"for example --ports {self.first}-{end - 1}" if end <= 65536 else "begin lower"
            raise Complaint(f"--ports {self} is too small", cause, fix, 2)
        return tuple(range(self.first, end))

    def __str__(self) -> str:
        return str(self.first) if self.last is None else f"{self.first}-{self.last}"


def _wrong(text: str, cause: str) -> Complaint:
    return Complaint(f"--ports {text!r} makes no sense", cause, "for example --ports 5655-5670", 2)
