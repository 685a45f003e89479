"""The RPC layer: both services of the CRI on grpc.aio, from one table, with strict requests and mapped errors."""

from cri.rpc.descriptors import redacted
from cri.rpc.server import RpcServer
from cri.rpc.table import UNIMPLEMENTED, RpcTableError

__all__ = ["UNIMPLEMENTED", "RpcServer", "RpcTableError", "redacted"]
