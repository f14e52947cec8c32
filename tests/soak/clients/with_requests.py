"""Sends METHOD URL BODY, as often as they are given, with requests. Prints status and body of each answer."""

import importlib
import sys

# It need not be installed, nor be known to mypy.
requests = importlib.import_module("requests")

with requests.Session() as session:
    given = iter(sys.argv[1:])
    for method, url, body in zip(given, given, given, strict=True):
        headers = {"content-type": "application/json"}
        answer = session.request(method, url, data=body, headers=headers, timeout=10)
        print(answer.status_code, answer.text)
