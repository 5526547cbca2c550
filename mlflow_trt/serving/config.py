"""How a server serves: one value, made once, which HTTP, gRPC and the HTTP workers read."""

from __future__ import annotations

from dataclasses import dataclass, field

from .limits import RANGES, Limits, check_number, check_secret, check_token


@dataclass(frozen=True)
class LoadOptions:
    """How versions are loaded, whichever is served."""

    backend: str = "tensorrt"
    devices: tuple[int, ...] = (0,)
    """Indices of GPUs; each loads the version, and all answer from one queue."""
    max_contexts: int = 2
    """How many calls run at once on each device."""
    memory_limit: int | None = None
    """Bytes of each GPU's memory that execution contexts may hold; None: a quarter of what is free."""
    batching: bool = True
    delay: float = 0.0
    """Seconds that a request may wait for others to join it."""
    max_queue: int = 256
    offline_start: bool = False
    """Whether the first version may be the one that was served last, from the cache, if the registry is away."""

    def __post_init__(self) -> None:
        if not self.devices or len(set(self.devices)) != len(self.devices):
            from ..errors import SettingError  # which imports MLflow: too slow for who only asks for help

            raise SettingError(f"The devices are {self.devices}.", "at least one, each once", "name them as in 0,1")


@dataclass(frozen=True)
class ServerConfig:
    """How a server serves; what each setting means to a caller is said in :func:`.server.serve`.

    Raises:
        SettingError: A number is out of its range, or a secret is empty or can't be sent.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    """Of HTTP."""
    grpc_port: int | None = None
    options: LoadOptions = LoadOptions()
    interval: float = 5.0
    """Seconds between two looks at an alias."""
    timeout: float = 60.0
    """Seconds that a request may take, once its body is there, and that running ones get when the server ends."""
    max_body: int = 256 << 20
    """Bytes of a request's body, before and after decoding."""
    token: str | None = None
    """The bearer token that requests must have; None: none."""
    webhook_secret: str | None = None
    """What MLflow signs its webhook deliveries with; None: there is no webhook route."""
    http_processes: int = 0
    """HTTP workers; 0: the process that holds the engines speaks HTTP itself."""
    drain: float = 5.0
    """Seconds between SIGTERM and the end."""
    limits: Limits = field(default_factory=Limits)
    exit_on_error: bool = True
    """Whether a model that can't be loaded ends the server; see :func:`.readiness.ready`."""
    access_log: bool = True
    """Whether requests that were answered well leave a line in the log."""
    log_level: str = "info"

    def __post_init__(self) -> None:
        settings = {**vars(self), **vars(self.options)}
        for name in RANGES.keys() & settings.keys():
            check_number(name, settings[name])
        check_token(self.token)
        check_secret("The webhook's secret", self.webhook_secret)
