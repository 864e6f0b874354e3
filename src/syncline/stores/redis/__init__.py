"""Redis and Valkey: rows as hashes, JSON documents and members of sorted sets."""

from syncline.stores.redis.config import RedisConfig
from syncline.stores.redis.store import RedisStore

__all__ = ["RedisConfig", "RedisStore"]
