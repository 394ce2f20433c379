"""A Redis for the tests of what counts in it."""

from tests.redis_server import own_redis, redis_server

__all__ = ["own_redis", "redis_server"]
