"""Run the API: `python -m api`."""

import logging
import os
import signal

import uvicorn

from api.app import create_app
from api.http_protocol import JsonErrorProtocol
from timemachine.domain.errors import SettingsError
from timemachine.process import exit_process
from timemachine.settings import Settings
from timemachine.telemetry import configure_logging, set_log_level
from timemachine.temporal.client import on_one_thread


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
        app = create_app(settings)
    except SettingsError as error:
        logging.getLogger("api").error("cannot start", extra={"reason": str(error)})
        return 1
    server = uvicorn.Server(
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
        )
    )
    server.run()
    return 0 if server.started else 1


if __name__ == "__main__":
    exit_process(main())
