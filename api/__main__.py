"""Run the API: `python -m api`."""

import logging
import os
import signal
import time
from types import FrameType

import uvicorn
from litestar import Litestar

from api.app import create_app
from api.http_protocol import JsonErrorProtocol
from timemachine import tracing
from timemachine.domain.errors import SettingsError
from timemachine.process import collect_garbage_seldom, exit_process
from timemachine.settings import Settings
from timemachine.telemetry import configure_logging, set_log_level
from timemachine.temporal.client import on_one_thread, program_runtime


class DrainingServer(uvicorn.Server):
    """Is not ready from the first signal on, and goes on serving for a while: until nothing more is sent to it."""

    def __init__(self, config: uvicorn.Config, app: Litestar, drain: float) -> None:
        """Take the app, and the seconds for which it goes on."""
        super().__init__(config)
        self._state = app.state
        self._drain = drain
        self._stop_at: float | None = None
        self._signal: int = signal.SIGTERM

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; at once where nothing is served yet, or at a second signal."""
        if not self.started or self._stop_at is not None:
            super().handle_exit(sig, frame)
            return
        self._state.readiness.stop.set()
        self._stop_at, self._signal = time.monotonic() + self._drain, sig

    async def on_tick(self, counter: int) -> bool:
        """Stop when it is time to."""
        if self._stop_at is not None and time.monotonic() >= self._stop_at and not self.should_exit:
            super().handle_exit(self._signal, None)
        return await super().on_tick(counter)


def main() -> int:
    """Serve until SIGTERM or SIGINT, and return the exit status."""
    configure_logging()
    on_one_thread(os.environ)
    for signum in (signal.SIGTERM, signal.SIGINT):
        # While uvicorn serves, it takes these itself, and raises them again once it has shut down.
        signal.signal(signum, lambda *_: exit_process(0))
    try:
        settings = Settings.from_env(os.environ)
        set_log_level(settings.log_level)
        tracing.start(os.environ, service="timemachine-api")
        app = create_app(settings, program_runtime(settings))
    except SettingsError as error:
        logging.getLogger("api").error("cannot start", extra={"reason": str(error)})
        return 1
    server = DrainingServer(
        uvicorn.Config(
            app,
            host=settings.http_host,
            port=settings.http_port,
            http=JsonErrorProtocol,
            timeout_keep_alive=settings.http_keep_alive,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            timeout_graceful_shutdown=int(settings.request_timeout) + 1,
        ),
        app,
        settings.http_drain,
    )
    collect_garbage_seldom()
    server.run()
    return 0 if server.started else 1


if __name__ == "__main__":
    exit_process(main())
