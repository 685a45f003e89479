"""`cri-jails image`: pull, look at and remove images, beside a running daemon and over its socket, never on its database.

`arguments` is what the command line needs before anybody knows whether the command is wanted; all else comes with `run`.
"""
