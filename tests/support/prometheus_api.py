"""What a test asks a real Prometheus."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx


class PrometheusApi:
    """The HTTP API of a Prometheus."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an expression as they are now. An expression that it refuses is an AssertionError."""
        found: list[dict[str, Any]] = (await self._get("query", query=expression))["result"]
        return found

    async def firing(self) -> set[str]:
        """Return the names of the alerts that fire."""
        return {series["metric"]["alertname"] for series in await self.query('ALERTS{alertstate="firing"}')}

    async def names(self) -> set[str]:
        """Return the names of all that was scraped."""
        return set(await self._get("label/__name__/values"))

    async def targets(self) -> dict[str, str]:
        """Return the health of what is scraped, by the name of the job."""
        active = (await self._get("targets"))["activeTargets"]
        return {target["labels"]["job"]: target["health"] for target in active}

    async def rules(self) -> dict[str, str]:
        """Return whether each alert can be evaluated, by its name."""
        groups = (await self._get("rules"))["groups"]
        return {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}

    async def _get(self, path: str, **params: str) -> Any:
        answer = await self._http.get(f"/api/v1/{path}", params=params)
        assert answer.status_code == 200, (params, answer.text)
        return answer.json()["data"]


@asynccontextmanager
async def asking(url: str) -> AsyncIterator[PrometheusApi]:
    async with httpx.AsyncClient(base_url=url, timeout=30) as http:
        yield PrometheusApi(http)
