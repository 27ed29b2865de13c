"""Object keys that somebody may choose to harm whoever looks at them. S3 takes each of them."""

HOSTILE_KEYS = {
    "html": "<script>alert(1)</script>/\"'><img src=x onerror=alert(1)>.jpg",
    "template": "{{ 7 * 7 }}{% raw %}/${7*7}.jpg",
    "escape": "Kiwi/\x1b[2J\x1b]0;title\x07.jpg",
    "c1": "Kiwi/\x9b2J.jpg",
    "newline": "Kiwi/1.jpg\n2026-11-26 ERROR all photos are lost",
    "return": "Kiwi/1.jpg\rgood",
    "formula": "=cmd|'/C calc'!A0",
    "wide formula": "\uff1dcmd|'/C calc'!A0",
    "tab formula": "\t=1+1",
    "traversal": "../../../../etc/passwd",
    "absolute": "/etc/passwd",
    "rtl": "Kiwi/\u202egpj.exe",
    "isolate": "Kiwi/\u2066gpj.exe\u2069",
    "separator": "Kiwi/1.jpg\u2028ERROR",
    "markup": "[bold red]Kiwi[/] :boom:/1.jpg",
}
ACTING = frozenset("\x1b\x07\x9b\r\t\u202e\u2066\u2069\u2028")
"""Characters that act on a terminal or on the direction of a text, none of which may be shown as such."""
