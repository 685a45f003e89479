"""What Status answers: whether pods can run here, and what they may ask for (CRI StatusResponse)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from cri.api.runtime import v1
from cri.network import CniNetwork
from cri.rpc import messages
from cri.sandbox.host import Condition, Features, Host


class NodeStatus:
    """Encoded once for all who ask, as long as it is the same: the kubelet asks all the time."""

    def __init__(
        self,
        host: Host,
        network: CniNetwork,
        runtime_handlers: Sequence[str],
        config: dict[str, Any],
        condition: Callable[[], Awaitable[Condition]],
        pulls: Callable[[], list[dict[str, object]]],
    ) -> None:
        """A verbose answer shows `config`, and the `pulls` under way; `condition` says whether pods can run here."""
        self._host = host
        self._network = network
        self._handlers = runtime_handlers
        self._config = config
        self._condition = condition
        self._pulls = pulls
        self._of: tuple[Condition, Condition, Features] | None = None
        self._encoded = b""

    async def encoded(self, verbose: bool) -> bytes:
        """The response, of this moment."""
        runtime, network = await asyncio.gather(self._condition(), self._network.condition())
        of = (runtime, network, self._host.features)
        if verbose:
            info = {"config": json.dumps(self._config), "pulls": json.dumps(self._pulls())}
            return messages.encoded(self._response(*of, info))
        if of != self._of:
            self._encoded = messages.encoded(self._response(*of, {}))
            self._of = of
        return self._encoded

    def _response(
        self, runtime: Condition, network: Condition, features: Features, info: dict[str, str]
    ) -> v1.StatusResponse:
        handler_features = v1.RuntimeHandlerFeatures(
            recursive_read_only_mounts=features.recursive_readonly_mounts,
            user_namespaces=features.user_namespaces,
        )
        return v1.StatusResponse(
            status=v1.RuntimeStatus(
                conditions=[
                    v1.RuntimeCondition(
                        type=kind, status=found.ok, reason=found.reason, message=found.message
                    )
                    for kind, found in (("RuntimeReady", runtime), ("NetworkReady", network))
                ]
            ),
            info=info,
            runtime_handlers=[
                v1.RuntimeHandler(name=name, features=handler_features) for name in ("", *self._handlers)
            ],
            features=v1.RuntimeFeatures(
                supplemental_groups_policy=features.supplemental_groups_policy,
                mount_options=features.mount_options,
            ),
        )
