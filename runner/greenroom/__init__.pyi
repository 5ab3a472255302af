from collections.abc import Callable
from typing import Any

from greenroom.actors.kernel.errors import KernelError as KernelError
from greenroom.actors.kernel.errors import Refusal as Refusal
from greenroom.actors.kernel.errors import Refused as Refused
from greenroom.actors.kernel.system import ActorSystem as ActorSystem
from greenroom.runner.client.async_client import AsyncClient as AsyncClient
from greenroom.runner.client.client import Client as Client
from greenroom.runner.client.client import connect as connect
from greenroom.runner.client.errors import GreenroomError as GreenroomError
from greenroom.runner.config import Settings as Settings
from greenroom.runner.config import load as load
from greenroom.runner.daemon import Greenroom as Greenroom
from greenroom.runner.diagnosis.stored_events import StoredEvent as StoredEvent
from greenroom.runner.diagnosis.stored_events import read_events as read_events
from greenroom.runner.environments.installer import Installer as Installer
from greenroom.runner.http.app import front_door as front_door

__version__: str

def public_names(package: str) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]: ...
