"""The units in deploy/systemd, which `asgictl init --systemd` would write for /srv/shop.

``python -m tests.deploy.units`` writes them.
"""

from pathlib import Path

from asgictl.settings import Settings
from asgictl.unit import service

DEPLOY = Path(__file__).parents[2] / "deploy"
SERVICE = DEPLOY / "systemd" / "shop.service"
SOCKET = DEPLOY / "systemd" / "shop.socket"


def shop(program: str = "/srv/shop/.venv/bin/asgictl", directory: str = "/srv/shop") -> str:
    """Return the text of ``SERVICE``."""
    chosen = {"bind": ("systemd:*",), "workers": "auto", "timeout_keep_alive": 75.0}
    return service(
        name="shop",
        application="app:app",
        program=[program],
        directory=directory,
        user="shop",
        chosen=chosen,
        settings=Settings(**chosen),
    )


if __name__ == "__main__":
    SERVICE.write_text(shop(), encoding="utf-8")
