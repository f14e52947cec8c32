"""Patterns of h11 (0.16), replaced for the whole process by ones that take time in proportion to what they read.

h11's own try each blank in each place that it could stand in: a line with 60,000 of them, which a client or a receiver
may send, held the event loop for half a minute. These take the same lines, but for a carriage return within a chunk's
extension. Imported by whoever reads with h11.
"""

import re

from h11 import _readers

_PATTERNS = {
    "header_field_re": rb"(?P<field_name>[-!#$%&'*+.^_`|~0-9a-zA-Z]+):[ \t]*+"
    rb"(?P<field_value>([^\x00\s]+(?:[ \t]+[^\x00\s]+)*)?)[ \t]*",
    "chunk_header_re": rb"(?P<chunk_size>[0-9A-Fa-f]{1,20})(?P<chunk_ext>;[^\r\n]*+)?[ \t]*\r\n",
}

for _name, _pattern in _PATTERNS.items():
    if not hasattr(_readers, _name):
        raise ImportError(f"this version of h11 has no {_name}, which is to be replaced")
    setattr(_readers, _name, re.compile(_pattern))
