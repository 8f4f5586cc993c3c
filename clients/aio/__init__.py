"""The client for asyncio. Only this folder imports aiohttp, which the extra `async` installs."""
