"""The live routes in an application of the tests' own: keys are names of organisations. As a program: `live_server.py DATABASE_URL PORT`."""

from __future__ import annotations

import sys
from uuid import UUID

import uvicorn
from fastapi import FastAPI, HTTPException, Request

from tokentra_dagster.realtime.live_routes import live_router
from tokentra_dagster.warehouse.database import Database


def application(database: Database) -> FastAPI:
    with database.connect() as db:
        organizations = {row["name"]: row["id"] for row in db.execute("SELECT id, name FROM app.organizations")}

    def organization_of_key(request: Request) -> UUID:
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        if key not in organizations:
            raise HTTPException(401, "The key is not known.")
        return organizations[key]

    app = FastAPI()
    app.include_router(live_router(database, organization_of_key))
    return app


if __name__ == "__main__":
    uvicorn.run(application(Database(sys.argv[1])), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
