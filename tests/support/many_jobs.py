"""Jobs by the dozen."""

import asyncio
from typing import Any

from tests.support.service import Service


async def create_many(service: Service, count: int, due_in: float, **fields: Any) -> list[str]:
    limit = asyncio.Semaphore(16)

    async def create() -> str:
        async with limit:
            return await service.create(due_in, **fields)

    return list(await asyncio.gather(*(create() for _ in range(count))))
