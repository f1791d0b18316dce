# SPDX-License-Identifier: Apache-2.0
"""Foreign text inside of GitHub's Markdown: it shows, and does nothing.

No markup, HTML, link, image or table cell comes of it (CommonMark 0.31, section 2.4: any
ASCII punctuation can be escaped by a backslash). GitHub looks for mentions, references and
bare addresses in what is left of the text, escaped or not; an empty HTML comment, which
never shows, parts them.
"""

import re
from typing import Final

from ipitrace.base.foreign import plain

_MARKUP: Final = re.compile(r"([\\`*_\[\]<>|&~])")
_PART: Final = "<!-- -->"
# user@host and @user; #12 and GH-12; scheme: and www.
_LOOKED_FOR: Final = re.compile(
    r"(@|#(?=\d)|\bgh-(?=\d)|\w:(?=//)|\b(?:mailto|xmpp):|\bwww(?=\.))", re.IGNORECASE
)


def markdown(text: str, most_chars: int = 1000) -> str:
    """`text` as plain() makes it, for a place inside of a line of Markdown."""
    escaped = _MARKUP.sub(r"\\\1", plain(text, most_chars))
    return _LOOKED_FOR.sub(rf"\1{_PART}", escaped)
