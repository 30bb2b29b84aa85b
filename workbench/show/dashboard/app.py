"""Serve the dashboard with Voila, for those who never open a notebook; its kernel runs `page.py`."""

import json
import secrets
import shutil
import socket
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from workbench.errors import WorkbenchError

TEMPLATE = Path(__file__).with_name("app.html.j2")
LOCAL = "127.0.0.1"  # nobody else in the network reaches the page
PING = 30_000  # milliseconds in which a page has to answer; tornado warns of more than its interval
QUIET = "--IPKernelApp.log_level=CRITICAL"  # what goes wrong is told in the page
CELL = """from workbench.show.dashboard.page import show
show({!r}, {!r}, {!r}, {!r})"""


def serve(
    things: Sequence[str] = (),
    voice: str | None = None,
    device: str = "cpu",
    folder: str | None = None,
    on_ready: Callable[[str], None] = webbrowser.open,
) -> None:
    """Serve a dashboard at a free port of this machine until it is interrupted.

    The address holds a secret, without which the page is not shown.

    Parameters
    ----------
    things : sequence of str
        Absolute paths of what is opened first.
    voice : str, optional
        Folder of the checkpoint that ran.
    device : str
    folder : str, optional
        Files below it are offered.
    on_ready : callable
        Gets the address once the page can be opened.

    Raises
    ------
    WorkbenchError
        When Voila is not installed.
    """
    try:
        from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
        from traitlets.config import Config
        from voila.app import Voila
    except ImportError:
        raise WorkbenchError(
            "Voila, which serves the dashboard, is not installed; install it with "
            "`pip install 'cosyvoice-workbench[app]'`, or with `pip install voila`"
        ) from None

    class OwnKernel(KernelSpecManager):
        """Knows the running Python alone, whatever kernels a person has installed."""

        def _kernel_dirs_default(self) -> list[str]:
            return []

        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            spec = super().get_kernel_spec(kernel_name)
            spec.argv.append(QUIET)
            return spec

    class Server(Voila):
        """Voila with the page of this folder."""

        def setup_template_dirs(self) -> None:
            super().setup_template_dirs()
            self.template_paths = [str(own), *self.template_paths]

        def launch_browser(self) -> None:
            """Tell the address, at the moment when Voila would open it."""
            on_ready(f"http://{LOCAL}:{self.port}/?token={token}")

    token = secrets.token_urlsafe(24)
    with TemporaryDirectory(prefix="workbench-") as folder_of_page:
        own = Path(folder_of_page)
        shutil.copy(TEMPLATE, own / "index.html.j2")
        notebook = own / "dashboard.ipynb"
        code = CELL.format(list(things), voice, device, folder)
        notebook.write_text(json.dumps(_notebook(code)), encoding="utf-8")
        config = Config()
        config.Voila.ip = LOCAL
        config.Voila.port = _free_port()
        config.Voila.token = token
        config.Voila.log_level = "ERROR"
        config.Voila.config_file_paths = []  # a person's settings of other pages are not for this one
        config.Voila.tornado_settings = {"ws_ping_timeout": PING}
        config.VoilaConfiguration.kernel_spec_manager_class = OwnKernel
        server = Server(config=config)
        server.initialize([str(notebook)])
        server.start()


def _notebook(code: str) -> dict[str, Any]:
    """Return a notebook of one cell, as JSON holds it."""
    cell = {"cell_type": "code", "source": code, "metadata": {}, "outputs": [], "execution_count": None}
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {
        "nbformat": 4,
        "nbformat_minor": 4,
        "metadata": {"kernelspec": kernel, "title": "Workbench"},
        "cells": [cell],
    }


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((LOCAL, 0))
        return free.getsockname()[1]
