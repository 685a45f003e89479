"""What is done about every field of the requests that make and change pods and containers: a table, and who holds them to it."""

from cri.rpc.fields.walk import check

__all__ = ["check"]
