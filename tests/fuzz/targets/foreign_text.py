# SPDX-License-Identifier: Apache-2.0
"""The one sanitiser: what it lets pass is printable, short enough, and stays as it is."""

import json

from ipitrace.base.foreign import plain, plain_json, plain_lines, plain_values

_MOST = 40


def fuzz(data: bytes) -> None:
    for text in (
        data.decode(errors="surrogateescape"),
        data.decode("utf-16-le", errors="surrogatepass") if len(data) % 2 == 0 else "",
    ):
        shown = plain(text, _MOST)
        assert shown.isprintable()
        assert len(shown) <= _MOST
        assert plain(shown, _MOST) == shown
        lines = plain_lines(text)
        assert lines.replace("\n", "").isprintable()
        assert plain_lines(lines) == lines
        values = plain_values({text: [text]}, _MOST)
        assert all(map(str.isprintable, values))
        whole = json.dumps({text: [text]}, ensure_ascii=False)
        harmless = plain_json(whole)
        assert harmless.isascii()
        assert harmless.replace("\n", "").isprintable()
        assert json.loads(harmless) == json.loads(whole)
