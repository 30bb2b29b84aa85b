"""A page that holds players, and what reaches the loudspeaker."""

import pytest

from tests.show.common import RECORD_OUTPUT, ready


@pytest.fixture
def opened(page, tmp_path):
    """Open a player's static twin in a page of its own, and wait until it is drawn."""

    def go(*players):
        body = "".join(player.static() for player in players)
        head = '<meta charset="utf-8"><title>players</title><style>:root { color-scheme: light dark }</style>'
        (tmp_path / "player.html").write_text(
            f'<!doctype html><html lang="en">{head}<main>{body}</main></html>'
        )
        page.add_init_script(RECORD_OUTPUT)
        page.goto((tmp_path / "player.html").as_uri())
        ready(page, len(players))
        return page

    return go
