"""The Neo4j store: tables as nodes and relationships."""

from syncline.stores.neo4j.store import Neo4jConfig, Neo4jStore

__all__ = ["Neo4jConfig", "Neo4jStore"]
