"""Looks at the rendezvous before torch is imported, whose stores wait for an answer without end."""

import os
import socket
import struct

from .process_group import mute_rendezvous
from .runtime import Launch

_CONNECT_SECONDS = 2.0
# A store's first messages, of torch 1.13 to 2.13: VALIDATE with its magic number, PING with ours.
_GREETING = struct.pack("=BIBI", 0, 0x3C85F7CE, 13, 0)


def check_rendezvous(launch: Launch, timeout_seconds: float) -> None:
    """Refuses a rendezvous that takes connections and says nothing.

    One that is not there yet is waited for later, by `start_process_group`.

    Args:
        launch: of this process.
        timeout_seconds: how long the answer may take.

    Raises:
        LaunchError: there was none; names host and port.
    """
    has_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if launch.world_size == 1 or (launch.rank == 0 and not has_agent):
        return
    address = (launch.master_addr, launch.master_port)
    try:
        with socket.create_connection(address, _CONNECT_SECONDS) as connection:
            connection.settimeout(timeout_seconds)
            connection.sendall(_GREETING)
            try:
                connection.recv(1)  # whatever it is, torch judges it
            except TimeoutError:
                raise mute_rendezvous(launch, timeout_seconds) from None
    except OSError:
        return
