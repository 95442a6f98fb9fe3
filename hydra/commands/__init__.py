"""The commands: one file for each kind of thing a person asks for. They read words, and call what does it."""
