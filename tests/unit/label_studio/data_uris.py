"""Data URIs in the spellings that come up, and whether Chromium shows them: a system test asks it."""

import base64
import textwrap

from tests.unit.images.kinds import READ, SVG

PNG = READ["PNG"]
_TEXT = base64.b64encode(PNG).decode()
_PLAIN = "data:image/png;base64,"
_BROKEN = textwrap.wrap(_TEXT, 76)
_HEX = "".join(f"%{byte:02X}" for byte in PNG)

# A spelling -> the URI, and whether Chromium shows it.
SPELLINGS: dict[str, tuple[str, bool]] = {
    "plain": (_PLAIN + _TEXT, True),
    "scheme in capitals": ("DATA:image/png;base64," + _TEXT, True),
    "base64 in capitals": ("data:image/png;BASE64," + _TEXT, True),
    "with a parameter": ("data:image/png;charset=utf-8;base64," + _TEXT, True),
    "blanks around base64": ("data:image/png; base64 ," + _TEXT, True),
    "without a media type": ("data:;base64," + _TEXT, True),
    "as bytes": ("data:application/octet-stream;base64," + _TEXT, True),
    "as text": ("data:text/html;base64," + _TEXT, True),
    "with slashes": ("data://image/png;base64," + _TEXT, True),
    "blanks before it": (" \n" + _PLAIN + _TEXT, True),
    "a tab in the scheme": ("da\tta:image/png;base64," + _TEXT, True),
    "lines of 76": (_PLAIN + "\n".join(_BROKEN), True),
    "lines of Windows, indented": (_PLAIN + "\r\n\t ".join(_BROKEN), True),
    "line breaks in percent": (_PLAIN + "%0D%0A".join(_BROKEN), True),
    "form feeds": (_PLAIN + "\f".join(_BROKEN), True),
    "without padding": (_PLAIN + _TEXT.rstrip("="), True),
    "percent-encoded": (_PLAIN + _TEXT.replace("+", "%2B").replace("/", "%2F").replace("=", "%3d"), True),
    "with a fragment": (_PLAIN + _TEXT + "#top", True),
    "in percent": ("data:image/png," + _HEX, True),
    "in percent, without a media type": ("data:," + _HEX, True),
    "an AVIF": ("data:image/avif;base64," + base64.b64encode(READ["AVIF"]).decode(), True),
    "the alphabet of URLs": (_PLAIN + _TEXT.replace("+", "-").replace("/", "_"), False),
    "with a query": (_PLAIN + _TEXT + "?x=1", False),
    "junk behind it": (_PLAIN + _TEXT + "!", False),
    "padding in the middle": (_PLAIN + _TEXT[:8] + "=" + _TEXT[8:], False),
    "too much padding": (_PLAIN + _TEXT.rstrip("=") + "====", False),
    "cut off": (_PLAIN + _TEXT.rstrip("=")[: len(_TEXT) // 4 * 4 - 7], False),
    "a letter of another alphabet": (_PLAIN + _TEXT[:8] + "\u00e4" + _TEXT[8:], False),
    "a parameter behind base64": ("data:image/png;base64;x=y," + _TEXT, False),
    "without a comma": ("data:image/png;base64" + _TEXT, False),
}

# Shown, but drawings are not supported.
DRAWINGS: dict[str, str] = {
    "as it is": f"data:image/svg+xml,{SVG.decode()}",
    "utf8": f"data:image/svg+xml;utf8,{SVG.decode()}",
    "in base64": f"data:image/svg+xml;base64,{base64.b64encode(SVG).decode()}",
}
