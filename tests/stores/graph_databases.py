import os
from contextlib import contextmanager
import neo4j
from syncline.stores.neo4j import Neo4jConfig
T={"n5":dict(uri="bolt://127.0.0.1:27595"),"n26":dict(uri="bolt://127.0.0.1:27695"),"arc":dict(uri="bolt://127.0.0.1:27697",user="root",password="playwithdata",database="syncline")}
KIND=os.environ.get("G","n5")
def config(): return Neo4jConfig(**T[KIND])
def driver():
    t=T[KIND]; return neo4j.GraphDatabase.driver(t["uri"],auth=(t["user"],t["password"]) if "user" in t else None, notifications_min_severity="OFF")
def empty():
    with driver() as d:
        while d.execute_query("MATCH (n) WITH n LIMIT 20000 DETACH DELETE n RETURN count(*) AS c",database_=T[KIND].get("database")).records[0]["c"]: pass
